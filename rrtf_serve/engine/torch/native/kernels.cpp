// One forward pass of a decoder-only language model on a CPU, in one call.
//
// Weights are 4-bit or 8-bit codes with a scale per group of inputs, or bfloat16; they are turned into bfloat16
// in registers and multiplied with bfloat16 activations into float32. Everything else is float32.
//
// A token's result is the same, bit for bit, whatever other tokens share its pass and however its prompt was
// cut into passes: every sum over inputs, keys or features runs in an order that depends on nothing else.
//
// Matrices lie in tiles of 16 outputs x 32 inputs. A tile as bfloat16 is [16 pairs of inputs][16 outputs][2],
// the layout that AMX (TDPBF16PS) and AVX-512 BF16 (VDPBF16PS) multiply; `pack` below gives the packed forms.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <omp.h>
#include <thread>
#include <vector>
#ifdef __AVX512BW__
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define WITH_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int LANES = 16;  // outputs per tile, floats per vector
constexpr int DEPTH = 32;  // inputs per tile
constexpr int TILE = LANES * DEPTH;
constexpr int AHEAD = 3072;  // bytes of weights that are asked for before they are needed: the best measured
constexpr int BUNDLE = 4;  // tiles of outputs that are multiplied at a time with many rows
constexpr int ROWS = 64;  // tokens that are multiplied at a time

typedef float Vector __attribute__((vector_size(64)));
typedef int32_t Integers __attribute__((vector_size(64)));
typedef float Unaligned __attribute__((vector_size(64), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }
inline Vector all(float value) { return Vector{} + value; }

inline float from_bf16(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline uint16_t to_bf16(float value) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? uint16_t(bits >> 16 | 64) : uint16_t(rounded);
}

inline float from_f16(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, rest = bits & 0x7fff;
    uint32_t wide;
    if (rest >= 0x7c00) {
        wide = sign | 0x7f800000 | (rest & 0x3ff) << 13;
    } else if (rest >= 0x400) {
        wide = sign | ((rest << 13) + 0x38000000);
    } else {
        const float small = float(rest) * 0x1p-24f;
        std::memcpy(&wide, &small, 4);
        wide |= sign;
    }
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

// Keys and values as they are kept. `get` and `put` go through float32.
struct AsFloat {
    float bits;
    float get() const { return bits; }
    void put(float value) { bits = value; }
};
struct AsBf16 {
    uint16_t bits;
    float get() const { return from_bf16(bits); }
    void put(float value) { bits = to_bf16(value); }
};

inline Vector widen(const AsFloat* from) { return load(&from->bits); }
inline Vector widen(const AsBf16* from) {
    typedef uint16_t Sixteen __attribute__((vector_size(32), aligned(2), may_alias));
    typedef uint32_t Words __attribute__((vector_size(64)));
    const Words wide = __builtin_convertvector(*reinterpret_cast<const Sixteen*>(from), Words) << 16;
    return reinterpret_cast<Vector>(wide);
}

#ifdef __AVX512F__
// Exchanges the blocks off the diagonal of every square of 2 * HALF rows and columns.
template <int HALF>
inline void exchange(Vector* rows) {
    Integers upper, lower;
    for (int lane = 0; lane < LANES; lane++) {
        upper[lane] = lane & HALF ? LANES + lane - HALF : lane;
        lower[lane] = lane & HALF ? LANES + lane : lane + HALF;
    }
    for (int row = 0; row < LANES; row++) {
        if (row & HALF) continue;
        const Vector a = rows[row], b = rows[row + HALF];
        rows[row] = __builtin_shuffle(a, b, upper);
        rows[row + HALF] = __builtin_shuffle(a, b, lower);
    }
}

// 16 rows become 16 columns (J. O. Eklundh, IEEE Transactions on Computers C-21, 1972).
inline void turn(Vector* rows) {
    exchange<8>(rows);
    exchange<4>(rows);
    exchange<2>(rows);
    exchange<1>(rows);
}
#endif

// Up to 16 keys `step` apart, dimension by dimension: block [dim, 16], 0 where there is no key.
template <class Kept>
inline void by_dimension(const Kept* keys, int64_t step, int64_t count, int64_t dim, float* block) {
#ifdef __AVX512F__
    for (int64_t d = 0; d < dim; d += LANES) {
        Vector rows[LANES];
        for (int lane = 0; lane < LANES; lane++) rows[lane] = lane < count ? widen(keys + lane * step + d) : Vector{};
        turn(rows);
        for (int lane = 0; lane < LANES; lane++) store(block + LANES * (d + lane), rows[lane]);
    }
#else
    for (int lane = 0; lane < LANES; lane++)
        for (int64_t d = 0; d < dim; d++) block[LANES * d + lane] = lane < count ? keys[lane * step + d].get() : 0;
#endif
}

// e^x to about 2 units in the last place, for x <= 88; 0 below -87. 2^n times a polynomial on [-ln2/2, ln2/2].
inline Vector exponential(Vector x) {
    const Integers tiny = x < all(-87.0f);
    x = tiny ? all(-87.0f) : x;
    const Vector shifter = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Vector shifted = x * all(1.44269504f) + shifter;
    const Vector n = shifted - shifter;
    Vector r = x - n * all(0.693359375f);
    r = r + n * all(2.12194440e-4f);
    Vector p = all(1.0f / 5040);
    p = p * r + all(1.0f / 720);
    p = p * r + all(1.0f / 120);
    p = p * r + all(1.0f / 24);
    p = p * r + all(1.0f / 6);
    p = p * r + all(0.5f);
    p = p * r + all(1.0f);
    p = p * r + all(1.0f);
    const Integers exponent = __builtin_convertvector(n, Integers) << 23;
    const Vector found = reinterpret_cast<Vector>(reinterpret_cast<Integers>(p) + exponent);
    return tiny ? all(0.0f) : found;
}

inline float total(Vector v) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += v[lane];
    return sum;
}

// What is in a work-sharing step: items [from, to) of `count` for one of `threads` threads.
struct Share {
    int64_t from, to;
    Share(int64_t count, int thread, int threads)
        : from(count * thread / threads), to(count * (thread + 1) / threads) {}
};

// Where the threads of a pass wait for each other, hundreds of times. OpenMP's own barrier puts a thread to
// sleep that has waited a while; where other programmes want the cores too, each waking then costs
// milliseconds. Here a thread that waits gives its turn away and stays ready to run.
class Meeting {
   public:
    void begin(int threads) { threads_ = threads; }

    void wait() {
        const unsigned round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
            arrived_.store(0, std::memory_order_relaxed);
            next_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int turns = 0; round_.load(std::memory_order_acquire) == round; turns++) {
            if (turns < SPINS) {
#if defined(__x86_64__) || defined(__i386__)
                __builtin_ia32_pause();
#endif
            } else {
                std::this_thread::yield();
            }
        }
    }

    // Numbers 0, 1, ... to whoever asks, until the next `wait` is over.
    size_t next() { return next_.fetch_add(1, std::memory_order_relaxed); }

   private:
    static constexpr int SPINS = 2000;
    int threads_ = 1;
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> round_{0};
    std::atomic<size_t> next_{0};
};

}  // namespace

extern "C" {

// The Python side declares the same structures (native/layout.py).

struct Linear {
    int64_t outputs, inputs;
    int32_t bits;    // 4, 8, 16
    int32_t group;   // inputs that share a scale, a multiple of 32; at 16 bits all
    int32_t offset;  // what is subtracted from every code; at 8 bits always 128
    int32_t groups;
    int32_t scale_type;  // 0 float32, 2 float16
    int32_t padding;
    const uint8_t* packed;
    const void* scales;      // [tiles of outputs][groups][16]; none at 16 bits
    const float* zeros;      // what is subtracted besides `offset`, likewise shaped; null: nothing
    const float* bias;       // [outputs] or null
    const int32_t* order;    // [inputs]: which feature is the n-th input; null: the n-th
};

struct Norm {
    const float* weight;
    const float* bias;  // null: root mean square norm
    float epsilon;
};

struct Layer {
    Norm before_attention, before_mlp;
    Linear attention_in[3];
    Linear attention_out;
    Linear mlp_in[2];
    Linear mlp_out;
    int32_t attention_ins, mlp_ins;
    int32_t window;  // tokens that a token sees, its own counted; 0: all before it
    int32_t padding;
};

struct Model {
    int64_t hidden, heads, kv_heads, head_dim, layers, positions;
    int32_t activation;  // 0: SiLU, 1: GELU by tanh, 2: GELU by erf
    int32_t table_type;  // of the embedding: 0 float32, 1 bfloat16, 2 float16
    const void* table;   // [vocabulary, hidden]
    const float* learned;  // [positions, hidden] or null
    const float* cosines;  // [positions, head_dim / 2] or null
    const float* sines;
    const Layer* layer;
    Norm last;
    Linear head;
    float scale;  // of queries
    int32_t padding;
};

struct Store {
    void** keys;  // per layer [slots, tokens, kv_heads, head_dim]
    void** values;
    const int64_t* key_strides;  // per layer: elements from one slot to the next
    const int64_t* value_strides;
    int32_t type;  // 0 float32, 1 bfloat16
    int32_t padding;
};

struct Pass {
    int64_t count;           // tokens
    const int32_t* tokens;
    const int32_t* slots;     // of each token
    const int32_t* positions;  // of each token; those of one slot lie together, in order
    int64_t wanted_count;
    const int32_t* wanted;  // indices of the tokens whose logits are asked for
    float* logits;          // [wanted_count, vocabulary]
};

}  // extern "C"

namespace {

// ---------------------------------------------------------------- matrix products

#ifdef __AVX512BW__

inline __m512i code_table(int offset) {  // bfloat16 of 0 - offset ... 15 - offset, twice: 5 bits are looked up
    alignas(64) uint16_t entries[32];
    for (int code = 0; code < 32; code++) entries[code] = to_bf16(float((code & 15) - offset));
    return _mm512_load_si512(entries);
}

#endif

// The codes of one tile as bfloat16.
struct Unpacker {
    int bits, offset;
#ifdef __AVX512BW__
    __m512i table;
    explicit Unpacker(const Linear& linear)
        : bits(linear.bits), offset(linear.offset), table(code_table(linear.offset)) {}
#else
    explicit Unpacker(const Linear& linear) : bits(linear.bits), offset(linear.offset) {}
#endif

    void operator()(const uint8_t* from, uint16_t* to) const {
        if (bits == 4) {
            four(from, to);
        } else {
            eight(from, to);
        }
    }

    void four(const uint8_t* from, uint16_t* to) const {
        // 16-bit lane i of the n-th 64 bytes holds element i of the tile's rows 4n ... 4n + 3.
#ifdef __AVX512BW__
        for (int quad = 0; quad < 4; quad++) {
            const __m512i codes = _mm512_loadu_si512(from + 64 * quad);
            uint16_t* row = to + 4 * DEPTH * quad;
            _mm512_store_si512(row, _mm512_permutexvar_epi16(codes, table));
            _mm512_store_si512(row + 32, _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), table));
            _mm512_store_si512(row + 64, _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 8), table));
            _mm512_store_si512(row + 96, _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 12), table));
        }
#else
        uint16_t lanes[TILE / 4];
        std::memcpy(lanes, from, sizeof lanes);
        for (int quad = 0; quad < 4; quad++)
            for (int row = 0; row < 4; row++)
                for (int i = 0; i < DEPTH; i++) {
                    const int code = lanes[DEPTH * quad + i] >> 4 * row & 15;
                    to[DEPTH * (4 * quad + row) + i] = to_bf16(float(code - offset));
                }
#endif
    }

    void eight(const uint8_t* from, uint16_t* to) const {
        // Codes less 128 are stored, as signed bytes.
#if defined(__AVX512BF16__)
        for (int row = 0; row < LANES; row++) {
            const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + DEPTH * row));
            const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + DEPTH * row + 16));
            const __m512 a = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(low));
            const __m512 b = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(high));
            _mm512_store_si512(to + DEPTH * row, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
        }
#else
        for (int i = 0; i < TILE; i++) to[i] = to_bf16(float(int8_t(from[i])));
#endif
    }
};

inline int64_t tile_bytes(const Linear& linear) { return TILE * linear.bits / 8; }
inline int64_t depth_tiles(const Linear& linear) { return (linear.inputs + DEPTH - 1) / DEPTH; }
inline int64_t output_tiles(const Linear& linear) { return (linear.outputs + LANES - 1) / LANES; }

// Memory that begins on a cache line: tiles that cross lines are read at less than half the speed.
template <class T>
struct LineAllocator {
    typedef T value_type;
    LineAllocator() = default;
    template <class U>
    LineAllocator(const LineAllocator<U>&) {}
    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64))); }
    void deallocate(T* at, size_t) { ::operator delete(at, std::align_val_t(64)); }
    template <class U>
    bool operator==(const LineAllocator<U>&) const { return true; }
    template <class U>
    bool operator!=(const LineAllocator<U>&) const { return false; }
};
typedef std::vector<uint16_t, LineAllocator<uint16_t>> Halves;

inline int64_t padded_inputs(const Linear& linear) { return depth_tiles(linear) * DEPTH; }

// Activations as bfloat16, ready to be multiplied with one matrix.
struct Inputs {
    Halves values;                  // [rows rounded up to 16][padded inputs]
    std::vector<float> sums;       // [rows][groups]: of each group's inputs, where zeros need them

    // Room for `rows` rows of what this matrix takes.
    void reserve(const Linear& linear, int64_t rows) {
        const size_t elements = size_t((rows + 15) / 16 * 16 * padded_inputs(linear));
        if (values.size() < elements) values.resize(elements);
        const size_t groups = linear.zeros ? size_t(rows * linear.groups) : 0;
        if (sums.size() < groups) sums.resize(groups);
    }

    // One row of features; `from` may be any row of the activations.
    void put(const Linear& linear, int64_t row, const float* from) {
        const int64_t width = padded_inputs(linear), groups = linear.zeros ? linear.groups : 0;
        uint16_t* to = values.data() + row * width;
        if (linear.order) {
            for (int64_t i = 0; i < linear.inputs; i++) to[i] = to_bf16(from[linear.order[i]]);
        } else {
            for (int64_t i = 0; i < linear.inputs; i++) to[i] = to_bf16(from[i]);
        }
        for (int64_t i = linear.inputs; i < width; i++) to[i] = 0;
        for (int64_t g = 0; g < groups; g++) {
            float sum = 0;
            const int64_t end = std::min<int64_t>(width, (g + 1) * linear.group);
            for (int64_t i = g * linear.group; i < end; i++) sum += from_bf16(to[i]);
            sums[row * groups + g] = sum;
        }
    }
};

// Which instructions multiply.
enum Unit { PORTABLE = 0, DOT = 1, MATRIX = 2 };

Unit best_unit() {
#if defined(WITH_AMX)
    constexpr int request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    if (syscall(SYS_arch_prctl, request, tile_data) == 0) return MATRIX;
#endif
#if defined(__AVX512BF16__)
    return DOT;
#else
    return PORTABLE;
#endif
}

Unit unit = best_unit();

#ifdef WITH_AMX

void configure(int rows) {  // sums and inputs of `rows`, weights whole
    alignas(64) uint8_t config[64] = {};
    config[0] = 1;
    for (int tile = 0; tile < 7; tile++) {
        config[16 + 2 * tile] = 64;  // bytes per row
        config[48 + tile] = uint8_t(tile == 6 ? 16 : rows);
    }
    _tile_loadconfig(config);
}

// sums: [BLOCKS * 16][16] = inputs (rows of `width`) times `tiles` tiles that lie one after another.
template <int BLOCKS>
inline void multiply_amx(const uint16_t* inputs, int64_t width, const uint16_t* tiles, int count, float* sums) {
    const int64_t stride = 2 * width;
    _tile_zero(0);
    if constexpr (BLOCKS > 1) _tile_zero(1);
    if constexpr (BLOCKS > 2) _tile_zero(2);
    if constexpr (BLOCKS > 3) _tile_zero(3);
    for (int tile = 0; tile < count; tile++) {
        const uint16_t* from = inputs + DEPTH * tile;
        _tile_loadd(6, tiles + TILE * tile, 64);
        _tile_loadd(4, from, stride);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (BLOCKS > 1) {
            _tile_loadd(5, from + 16 * width, stride);
            _tile_dpbf16ps(1, 5, 6);
        }
        if constexpr (BLOCKS > 2) {
            _tile_loadd(4, from + 32 * width, stride);
            _tile_dpbf16ps(2, 4, 6);
        }
        if constexpr (BLOCKS > 3) {
            _tile_loadd(5, from + 48 * width, stride);
            _tile_dpbf16ps(3, 5, 6);
        }
    }
    _tile_stored(0, sums, 64);
    if constexpr (BLOCKS > 1) _tile_stored(1, sums + 256, 64);
    if constexpr (BLOCKS > 2) _tile_stored(2, sums + 512, 64);
    if constexpr (BLOCKS > 3) _tile_stored(3, sums + 768, 64);
}

#endif

#ifdef __AVX512BF16__

template <int COUNT>
inline void multiply_dot(const uint16_t* inputs, int64_t width, const uint16_t* tiles, int count, float* sums) {
    __m512 acc[COUNT];
    for (int row = 0; row < COUNT; row++) acc[row] = _mm512_setzero_ps();
    for (int pair = 0; pair < LANES * count; pair++) {
        const __m512i weights = _mm512_load_si512(tiles + DEPTH * pair);
        for (int row = 0; row < COUNT; row++) {
            int32_t both;
            std::memcpy(&both, inputs + row * width + 2 * pair, 4);
            acc[row] = _mm512_dpbf16_ps(acc[row], reinterpret_cast<__m512bh>(_mm512_set1_epi32(both)),
                                        reinterpret_cast<__m512bh>(weights));
        }
    }
    for (int row = 0; row < COUNT; row++) _mm512_store_ps(sums + LANES * row, acc[row]);
}

#endif

inline void multiply_portable(const uint16_t* inputs, int64_t width, const uint16_t* tiles, int count, int rows,
                              float* sums) {
    for (int row = 0; row < rows; row++) store(sums + LANES * row, Vector{});
    for (int pair = 0; pair < LANES * count; pair++) {
        Vector even, odd;
        for (int lane = 0; lane < LANES; lane++) {
            even[lane] = from_bf16(tiles[DEPTH * pair + 2 * lane]);
            odd[lane] = from_bf16(tiles[DEPTH * pair + 2 * lane + 1]);
        }
        for (int row = 0; row < rows; row++) {
            const uint16_t* two = inputs + row * width + 2 * pair;
            Vector sum = load(sums + LANES * row);
            sum += even * all(from_bf16(two[0]));
            sum += odd * all(from_bf16(two[1]));
            store(sums + LANES * row, sum);
        }
    }
}

// sums: [rows rounded up to 16][16]
inline void multiply(const uint16_t* inputs, int64_t width, const uint16_t* tiles, int count, int rows,
                     float* sums) {
#ifdef WITH_AMX
    if (unit == MATRIX) {
        switch ((rows + 15) / 16) {
            case 1: return multiply_amx<1>(inputs, width, tiles, count, sums);
            case 2: return multiply_amx<2>(inputs, width, tiles, count, sums);
            case 3: return multiply_amx<3>(inputs, width, tiles, count, sums);
            default: return multiply_amx<4>(inputs, width, tiles, count, sums);
        }
    }
#endif
#ifdef __AVX512BF16__
    if (unit == DOT) {
        int row = 0;
        for (; row + 16 <= rows; row += 16)
            multiply_dot<16>(inputs + row * width, width, tiles, count, sums + LANES * row);
        for (; row + 4 <= rows; row += 4)
            multiply_dot<4>(inputs + row * width, width, tiles, count, sums + LANES * row);
        for (; row < rows; row++)
            multiply_dot<1>(inputs + row * width, width, tiles, count, sums + LANES * row);
        return;
    }
#endif
    multiply_portable(inputs, width, tiles, count, rows, sums);
}

// What one thread needs for products.
struct Bench {
    alignas(64) uint16_t tiles[2][8 * TILE];
    alignas(64) float sums[2][ROWS * LANES];
    alignas(64) float acc[BUNDLE][ROWS * LANES];
    Halves strips;  // unpacked, of a bundle

    void reserve(const Linear& linear, int64_t rows) {
        const size_t elements = linear.bits < 16 && rows > ROWS ? size_t(BUNDLE * depth_tiles(linear) * TILE) : 0;
        if (strips.size() < elements) strips.resize(elements);
    }
};

inline Vector scales_at(const Linear& linear, int64_t at) {
    if (linear.scale_type == 0) return load(static_cast<const float*>(linear.scales) + at);
    const uint16_t* from = static_cast<const uint16_t*>(linear.scales) + at;
#ifdef __AVX512F__
    return reinterpret_cast<Vector>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#else
    Vector found;
    for (int lane = 0; lane < LANES; lane++) found[lane] = from_f16(from[lane]);
    return found;
#endif
}

// Some tiles, one after another, that share a scale.
struct Piece {
    int64_t begin, group;
    int count;  // 0: no more
    bool last;  // of its group
};

struct Cursor {
    int64_t depth, per_group, group, at;

    Piece next() {
        if (at == depth) return {at, group, 0, true};
        const int64_t end = std::min(depth, (group + 1) * per_group);
        const int count = int(std::min<int64_t>(8, end - at));
        const Piece found = {at, group, count, at + count == end};
        at += count;
        group += at == end;
        return found;
    }
};

// Outputs of `bundle` tiles from the one numbered `tile` on, of all rows: to[row * stride + output] = or +=
// product + bias.
void product(const Linear& linear, int64_t tile, int bundle, const Inputs& inputs, int64_t rows, float* to,
             int64_t stride, bool add, Bench& bench) {
    const int64_t depth = depth_tiles(linear), bytes = tile_bytes(linear), width = depth * DEPTH;
    const uint8_t* packed = linear.packed + tile * depth * bytes;
    const Unpacker unpack(linear);
    const bool plain = linear.bits == 16;
    const int64_t per_group = plain ? depth : linear.group / DEPTH;
    const int64_t groups = plain ? 1 : linear.groups;
    // Many rows: whole strips are unpacked once. Few: a few tiles at a time, which stay in the nearest cache.
    const uint16_t* strips = nullptr;
    if (plain) {
        strips = reinterpret_cast<const uint16_t*>(packed);
    } else if (rows > ROWS) {
        uint16_t* whole = bench.strips.data();
        for (int64_t at = 0; at < bundle * depth; at++) unpack(packed + at * bytes, whole + at * TILE);
        strips = whole;
    }
    for (int64_t first = 0; first < rows; first += ROWS) {
        const int block = int(rows - first < ROWS ? rows - first : ROWS);
        for (int i = 0; i < bundle; i++) {
            Vector bias{};
            if (linear.bias)
                for (int64_t lane = 0, at = LANES * (tile + i); lane < LANES && at < linear.outputs; lane++, at++)
                    bias[lane] = linear.bias[at];
            for (int row = 0; row < block; row++) store(bench.acc[i] + LANES * row, bias);
        }
        const uint16_t* from = inputs.values.data() + first * width;
        int turn = 0, side = 0;
        const auto tiles_of = [&](const Piece& some) -> const uint16_t* {
            if (strips) return strips + some.begin * TILE;
            uint16_t* const target = bench.tiles[turn ^= 1];
            const uint8_t* const source = packed + some.begin * bytes;
            for (int64_t byte = 0; byte < some.count * bytes; byte += 64)
                __builtin_prefetch(source + AHEAD + byte, 0, 2);
            for (int i = 0; i < some.count; i++) unpack(source + i * bytes, target + TILE * i);
            return target;
        };
        const auto finish = [&](const Piece& piece, int i, const float* sums) {
            const int64_t place = ((tile + i) * groups + piece.group) * LANES;
            const Vector scale = plain ? all(1.0f) : scales_at(linear, place);
            float* const acc = bench.acc[i];
            for (int row = 0; row < block; row++)
                store(acc + LANES * row, load(acc + LANES * row) + scale * load(sums + LANES * row));
            if (linear.zeros && piece.last) {
                const Vector zero = scale * load(linear.zeros + place);
                for (int row = 0; row < block; row++) {
                    const float sum = inputs.sums[(first + row) * groups + piece.group];
                    store(acc + LANES * row, load(acc + LANES * row) - zero * all(sum));
                }
            }
        };
        // What was just stored is not touched again at once: the next tiles are unpacked before these are
        // multiplied, and sums are added up when the next ones are under way. Both would wait otherwise.
        Cursor cursor{depth, per_group, 0, 0};
        Piece piece = cursor.next(), before{};
        int before_tile = 0;
        const uint16_t* tiles = tiles_of(piece);
        while (piece.count) {
            const Piece next = cursor.next();
            const uint16_t* const next_tiles = next.count ? tiles_of(next) : nullptr;
            for (int i = 0; i < bundle; i++) {
                multiply(from + piece.begin * DEPTH, width, tiles + i * depth * TILE, piece.count, block,
                         bench.sums[side ^= 1]);
                if (before.count) finish(before, before_tile, bench.sums[side ^ 1]);
                before = piece;
                before_tile = i;
            }
            piece = next;
            tiles = next_tiles;
        }
        finish(before, before_tile, bench.sums[side]);
        for (int i = 0; i < bundle; i++)
            for (int row = 0; row < block; row++) {
                float* target = to + (first + row) * stride + LANES * (tile + i);
                const float* acc = bench.acc[i] + LANES * row;
                const int64_t left = linear.outputs - LANES * (tile + i);
                if (left >= LANES) {
                    store(target, add ? load(target) + load(acc) : load(acc));
                } else {
                    for (int64_t lane = 0; lane < left; lane++) target[lane] = (add ? target[lane] : 0) + acc[lane];
                }
            }
    }
}

// Several matrices over the same rows, their outputs side by side: the share of one thread.
struct Job {
    const Linear* linear;
    const Inputs* inputs;
    float* to;
};

void products(const Job* jobs, int count, int64_t rows, int64_t stride, bool add, int thread, int threads,
              Bench& bench) {
#ifdef WITH_AMX
    if (unit == MATRIX) configure(rows < 16 ? int(rows) : 16);
#endif
    int64_t all_tiles = 0;
    for (int job = 0; job < count; job++) all_tiles += output_tiles(*jobs[job].linear);
    const Share share(all_tiles, thread, threads);
    int64_t before = 0;
    for (int job = 0; job < count; job++) {
        const int64_t tiles = output_tiles(*jobs[job].linear);
        const int64_t from = std::max(share.from, before), to = std::min(share.to, before + tiles);
        // Several tiles at once read the activations once; only with many rows is that worth it.
        const int most = rows > LANES && (rows > ROWS || jobs[job].linear->bits == 16) ? BUNDLE : 1;
        for (int64_t tile = from; tile < to; tile += most)
            product(*jobs[job].linear, tile - before, int(std::min<int64_t>(most, to - tile)), *jobs[job].inputs,
                    rows, jobs[job].to, stride, add, bench);
        before += tiles;
    }
#ifdef WITH_AMX
    if (unit == MATRIX) _tile_release();
#endif
}

// ---------------------------------------------------------------- norms, rotary positions, activations

void normalise(const Norm& norm, const float* from, float* to, int64_t width) {
    const int64_t whole = width / LANES * LANES;
    float mean = 0;
    if (norm.bias) {
        Vector sums{};
        for (int64_t i = 0; i < whole; i += LANES) sums += load(from + i);
        mean = total(sums);
        for (int64_t i = whole; i < width; i++) mean += from[i];
        mean /= float(width);
    }
    Vector sums{};
    for (int64_t i = 0; i < whole; i += LANES) {
        const Vector far = load(from + i) - all(mean);
        sums += far * far;
    }
    float squares = total(sums);
    for (int64_t i = whole; i < width; i++) squares += (from[i] - mean) * (from[i] - mean);
    const float factor = 1 / std::sqrt(squares / float(width) + norm.epsilon);
    for (int64_t i = 0; i < width; i++) to[i] = (from[i] - mean) * factor * norm.weight[i];
    if (norm.bias)
        for (int64_t i = 0; i < width; i++) to[i] += norm.bias[i];
}

inline void rotate(float* head, const float* cosines, const float* sines, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        const float a = head[i], b = head[i + half];
        head[i] = a * cosines[i] - b * sines[i];
        head[i + half] = b * cosines[i] + a * sines[i];
    }
}

inline Vector activate(int kind, Vector x) {
    if (kind == 2) {
        Vector found;
        for (int lane = 0; lane < LANES; lane++)
            found[lane] = 0.5f * x[lane] * (1 + std::erf(x[lane] * 0.70710678f));
        return found;
    }
    // x times the logistic function of y; GELU by tanh is that too, of 2 sqrt(2/pi) (x + 0.044715 x^3)
    Vector y = kind == 0 ? x : all(1.59576912f) * (x + all(0.044715f) * x * x * x);
    const Integers low = y < all(-87.0f);
    y = low ? all(-87.0f) : y;
    return x / (all(1.0f) + exponential(-y));
}

// ---------------------------------------------------------------- attention

constexpr int PAIRS = 128;  // (token, head) pairs that one item holds at most

struct Desk {  // of one thread
    std::vector<float> scores, block;

    void reserve(int64_t pairs, int64_t keys, int64_t dim) {
        if (int64_t(scores.size()) < pairs * keys) scores.resize(size_t(pairs * keys));
        if (int64_t(block.size()) < dim * LANES) block.resize(size_t(dim * LANES));
    }
};

// scores[pair][key of the block] for COUNT pairs that start at `pair`.
template <int COUNT>
inline void score(const float* const* queries, const float* block, int64_t dim, float* scores, int64_t stride) {
    Vector acc[COUNT];
    for (int i = 0; i < COUNT; i++) acc[i] = Vector{};
    for (int64_t d = 0; d < dim; d++) {
        const Vector keys = load(block + LANES * d);
        for (int i = 0; i < COUNT; i++) acc[i] += keys * all(queries[i][d]);
    }
    for (int i = 0; i < COUNT; i++) store(scores + i * stride, acc[i]);
}

// out[pair][d .. d + 16 * WIDTH) = sum over keys of score times value.
template <int COUNT, int WIDTH, class Kept>
inline void weigh(const float* scores, int64_t stride, const Kept* values, int64_t step, int64_t keys,
                  const float* norms, float* const* out, int64_t d) {
    Vector acc[COUNT][WIDTH];
    for (int i = 0; i < COUNT; i++)
        for (int w = 0; w < WIDTH; w++) acc[i][w] = Vector{};
    for (int64_t key = 0; key < keys; key++) {
        Vector value[WIDTH];
        for (int w = 0; w < WIDTH; w++) value[w] = widen(values + key * step + d + LANES * w);
        for (int i = 0; i < COUNT; i++) {
            const Vector share = all(scores[i * stride + key]);
            for (int w = 0; w < WIDTH; w++) acc[i][w] += share * value[w];
        }
    }
    for (int i = 0; i < COUNT; i++)
        for (int w = 0; w < WIDTH; w++) store(out[i] + d + LANES * w, acc[i][w] * all(norms[i]));
}

template <int COUNT, class Kept>
inline void weigh_all(const float* scores, int64_t stride, const Kept* values, int64_t step, int64_t keys,
                      const float* norms, float* const* out, int64_t dim) {
    int64_t d = 0;
    for (; d + 64 <= dim; d += 64) weigh<COUNT, 4>(scores, stride, values, step, keys, norms, out, d);
    for (; d < dim; d += 16) weigh<COUNT, 1>(scores, stride, values, step, keys, norms, out, d);
}

// Tokens that follow one another in one slot, and heads that share keys.
struct Item {
    int64_t first, tokens, kv_head, head, heads;
};

template <class Kept>
void attend(const Model& model, const Store& store_, int64_t layer, int64_t window, const Pass& pass,
            const Item& item, const float* queries, int64_t stride, float* out, Desk& desk) {
    const int64_t dim = model.head_dim, step = model.kv_heads * dim;
    const int64_t slot = pass.slots[item.first], offset = item.kv_head * dim;
    const Kept* keys = static_cast<const Kept*>(store_.keys[layer]) + slot * store_.key_strides[layer] + offset;
    const Kept* values =
        static_cast<const Kept*>(store_.values[layer]) + slot * store_.value_strides[layer] + offset;
    const int64_t oldest = pass.positions[item.first], newest = oldest + item.tokens - 1;
    // Blocks of 16 keys begin at multiples of 16, whoever asks.
    const int64_t begin = window && oldest >= window ? (oldest - window + 1) / LANES * LANES : 0;
    const int64_t length = (newest - begin) / LANES * LANES + LANES;
    const int count = int(item.tokens * item.heads);
    float* const scores = desk.scores.data();
    float* const block = desk.block.data();

    const float* query[PAIRS];
    float* target[PAIRS];
    float norm[PAIRS];
    for (int pair = 0; pair < count; pair++) {
        const int64_t token = item.first + pair / item.heads, head = item.head + pair % item.heads;
        query[pair] = queries + token * stride + head * dim;
        target[pair] = out + (token * model.heads + head) * dim;
    }
    for (int64_t key = begin; key < begin + length; key += LANES) {
        by_dimension(keys + key * step, step, newest + 1 - key, dim, block);
        float* to = scores + (key - begin);
        int pair = 0;
        for (; pair + 8 <= count; pair += 8) score<8>(query + pair, block, dim, to + pair * length, length);
        for (; pair + 4 <= count; pair += 4) score<4>(query + pair, block, dim, to + pair * length, length);
        switch (count - pair) {
            case 3: score<3>(query + pair, block, dim, to + pair * length, length); break;
            case 2: score<2>(query + pair, block, dim, to + pair * length, length); break;
            case 1: score<1>(query + pair, block, dim, to + pair * length, length); break;
        }
    }
    for (int pair = 0; pair < count; pair++) {
        float* row = scores + pair * length;
        const int64_t position = oldest + pair / item.heads;
        const int64_t from = (window && position >= window ? position - window + 1 : 0) - begin;
        const int64_t to = position - begin;  // the last that it sees
        Vector most = all(-std::numeric_limits<float>::infinity());
        int64_t next = from;
        for (; next + LANES <= to + 1; next += LANES) {
            const Vector some = load(row + next);
            most = some > most ? some : most;
        }
        float highest = most[0];
        for (int lane = 1; lane < LANES; lane++) highest = std::max(highest, most[lane]);
        for (; next <= to; next++) highest = std::max(highest, row[next]);
        const Vector top = all(highest * model.scale), scale = all(model.scale);
        for (int64_t i = 0; i < from; i++) row[i] = 0;
        for (int64_t i = to + 1; i < length; i++) row[i] = 0;
        Vector sum{};
        for (int64_t i = from / LANES * LANES; i <= to; i += LANES) {
            Vector share = exponential(load(row + i) * scale - top);
            if (i < from || i + LANES > to + 1)
                for (int lane = 0; lane < LANES; lane++)
                    if (i + lane < from || i + lane > to) share[lane] = 0;
            store(row + i, share);
            sum += share;
        }
        norm[pair] = 1 / total(sum);
    }
    const Kept* first = values + begin * step;
    const int64_t seen = newest - begin + 1;
    int pair = 0;
    for (; pair + 4 <= count; pair += 4)
        weigh_all<4>(scores + pair * length, length, first, step, seen, norm + pair, target + pair, dim);
    const float* const left = scores + pair * length;
    switch (count - pair) {
        case 3: weigh_all<3>(left, length, first, step, seen, norm + pair, target + pair, dim); break;
        case 2: weigh_all<2>(left, length, first, step, seen, norm + pair, target + pair, dim); break;
        case 1: weigh_all<1>(left, length, first, step, seen, norm + pair, target + pair, dim); break;
    }
}

template <class Kept>
void keep(const Model& model, const Store& store_, int64_t layer, const Pass& pass, int64_t token,
          const float* keys, const float* values) {
    const int64_t width = model.kv_heads * model.head_dim;
    const int64_t slot = pass.slots[token], at = pass.positions[token] * width;
    Kept* to_keys = static_cast<Kept*>(store_.keys[layer]) + slot * store_.key_strides[layer] + at;
    Kept* to_values = static_cast<Kept*>(store_.values[layer]) + slot * store_.value_strides[layer] + at;
    for (int64_t i = 0; i < width; i++) to_keys[i].put(keys[i]);
    for (int64_t i = 0; i < width; i++) to_values[i].put(values[i]);
}

std::vector<Item> plan(const Model& model, const Pass& pass, int threads) {
    std::vector<Item> items;
    const int64_t shared = model.heads / model.kv_heads;
    for (int64_t first = 0; first < pass.count;) {
        int64_t end = first + 1;
        while (end < pass.count && pass.slots[end] == pass.slots[first] &&
               pass.positions[end] == pass.positions[end - 1] + 1)
            end++;
        // One token alone: its heads are spread over the threads. Many: a few tokens of all heads at a time.
        const int64_t tokens = end - first;
        int64_t heads = std::min<int64_t>(shared, 8);
        if (pass.count * model.kv_heads < threads)
            heads = std::min(heads, std::max<int64_t>(1, shared * model.kv_heads * pass.count / threads));
        const int64_t longest = std::max<int64_t>(1, (int64_t(1) << 17) / (pass.positions[end - 1] + LANES));
        const int64_t step = std::max<int64_t>(1, std::min<int64_t>(PAIRS, longest) / heads);
        for (int64_t at = 0; at < tokens; at += step)
            for (int64_t kv = 0; kv < model.kv_heads; kv++)
                for (int64_t head = 0; head < shared; head += heads)
                    items.push_back({first + at, std::min(step, tokens - at), kv, kv * shared + head,
                                     std::min(heads, shared - head)});
        first = end;
    }
    return items;
}

// ---------------------------------------------------------------- the pass

struct Workspace {
    std::vector<float> hidden, normed, joined, attended, wide;
    Inputs inputs[3];
};

void embed(const Model& model, const Pass& pass, int64_t row, float* to) {
    const int64_t width = model.hidden, at = pass.tokens[row] * width;
    if (model.table_type == 0) {
        std::memcpy(to, static_cast<const float*>(model.table) + at, size_t(4 * width));
    } else {
        const uint16_t* from = static_cast<const uint16_t*>(model.table) + at;
        for (int64_t i = 0; i < width; i++) to[i] = model.table_type == 1 ? from_bf16(from[i]) : from_f16(from[i]);
    }
    if (model.learned) {
        const float* learned = model.learned + pass.positions[row] * width;
        for (int64_t i = 0; i < width; i++) to[i] += learned[i];
    }
}

template <class Kept>
void run(const Model& model, const Store& store_, const Pass& pass, int threads) {
    const int64_t rows = pass.count, hidden = model.hidden, dim = model.head_dim;
    const int64_t query_width = model.heads * dim, kv_width = model.kv_heads * dim;
    const int64_t joined = query_width + 2 * kv_width;
    int64_t widest = 0;
    for (int64_t i = 0; i < model.layers; i++) widest = std::max(widest, model.layer[i].mlp_in[0].outputs);
    Workspace work;
    work.hidden.resize(size_t(rows * hidden));
    work.normed.resize(size_t(rows * hidden));
    work.joined.resize(size_t(rows * joined));
    work.attended.resize(size_t(rows * query_width));
    work.wide.resize(size_t(2 * rows * widest));
    const std::vector<Item> items = plan(model, pass, threads);
    // All memory is had before the threads start: what is thrown among them ends the process.
    std::vector<Bench> benches(static_cast<size_t>(threads));
    std::vector<Desk> desks(static_cast<size_t>(threads));
    const auto reserve = [&](const Linear& linear, int64_t count, int place) {
        work.inputs[place].reserve(linear, count);
        for (Bench& bench : benches) bench.reserve(linear, count);
    };
    for (int64_t index = 0; index < model.layers; index++) {
        const Layer& layer = model.layer[index];
        for (int i = 0; i < layer.attention_ins; i++) reserve(layer.attention_in[i], rows, i);
        reserve(layer.attention_out, rows, 0);
        for (int i = 0; i < layer.mlp_ins; i++) reserve(layer.mlp_in[i], rows, i);
        reserve(layer.mlp_out, rows, 0);
    }
    reserve(model.head, pass.wanted_count, 0);
    for (const Item& item : items)
        for (Desk& desk : desks)
            desk.reserve(item.tokens * item.heads, pass.positions[item.first] + item.tokens + LANES, dim);

    Meeting meeting;
#pragma omp parallel num_threads(threads)
    {
        // The runtime may give fewer threads than were asked for.
        const int thread = omp_get_thread_num(), team = omp_get_num_threads();
#pragma omp single
        meeting.begin(team);
        Bench& bench = benches[size_t(thread)];
        Desk& desk = desks[size_t(thread)];
        const Share own(rows, thread, team);
        for (int64_t row = own.from; row < own.to; row++) embed(model, pass, row, &work.hidden[row * hidden]);
        for (int64_t index = 0; index < model.layers; index++) {
            const Layer& layer = model.layer[index];
            Job jobs[3];
            for (int64_t row = own.from; row < own.to; row++) {
                float* normed = &work.normed[row * hidden];
                normalise(layer.before_attention, &work.hidden[row * hidden], normed, hidden);
                for (int i = 0; i < layer.attention_ins; i++)
                    work.inputs[i].put(layer.attention_in[i], row, normed);
            }
            meeting.wait();
            int64_t offset = 0;
            for (int i = 0; i < layer.attention_ins; i++) {
                jobs[i] = {&layer.attention_in[i], &work.inputs[i], work.joined.data() + offset};
                offset += layer.attention_in[i].outputs;
            }
            products(jobs, layer.attention_ins, rows, joined, false, thread, team, bench);
            meeting.wait();
            for (int64_t row = own.from; row < own.to; row++) {
                float* queries = &work.joined[row * joined];
                float* keys = queries + query_width;
                if (model.cosines) {
                    const int64_t at = pass.positions[row] * (dim / 2);
                    for (int64_t head = 0; head < model.heads + model.kv_heads; head++)
                        rotate(queries + head * dim, model.cosines + at, model.sines + at, dim / 2);
                }
                keep<Kept>(model, store_, index, pass, row, keys, keys + kv_width);
            }
            meeting.wait();
            for (size_t i = meeting.next(); i < items.size(); i = meeting.next())
                attend<Kept>(model, store_, index, layer.window, pass, items[i], work.joined.data(), joined,
                             work.attended.data(), desk);
            meeting.wait();
            for (int64_t row = own.from; row < own.to; row++)
                work.inputs[0].put(layer.attention_out, row, &work.attended[row * query_width]);
            meeting.wait();
            jobs[0] = {&layer.attention_out, &work.inputs[0], work.hidden.data()};
            products(jobs, 1, rows, hidden, true, thread, team, bench);
            meeting.wait();
            for (int64_t row = own.from; row < own.to; row++) {
                float* normed = &work.normed[row * hidden];
                normalise(layer.before_mlp, &work.hidden[row * hidden], normed, hidden);
                for (int i = 0; i < layer.mlp_ins; i++) work.inputs[i].put(layer.mlp_in[i], row, normed);
            }
            meeting.wait();
            const int64_t width = layer.mlp_in[0].outputs;
            float* const gates = work.wide.data();
            float* const ups = gates + rows * width;
            for (int i = 0; i < layer.mlp_ins; i++)
                jobs[i] = {&layer.mlp_in[i], &work.inputs[i], i ? ups : gates};
            products(jobs, layer.mlp_ins, rows, width, false, thread, team, bench);
            meeting.wait();
            const Share part(rows * width / LANES, thread, team);
            for (int64_t at = part.from * LANES; at < part.to * LANES; at += LANES) {
                const Vector active = activate(model.activation, load(gates + at));
                store(gates + at, layer.mlp_ins > 1 ? active * load(ups + at) : active);
            }
            meeting.wait();
            for (int64_t row = own.from; row < own.to; row++)
                work.inputs[0].put(layer.mlp_out, row, gates + row * width);
            meeting.wait();
            jobs[0] = {&layer.mlp_out, &work.inputs[0], work.hidden.data()};
            products(jobs, 1, rows, hidden, true, thread, team, bench);
            meeting.wait();
        }
        if (pass.wanted_count) {
            const Share mine(pass.wanted_count, thread, team);
            for (int64_t i = mine.from; i < mine.to; i++) {
                const int64_t row = pass.wanted[i];
                float* normed = &work.normed[row * hidden];
                normalise(model.last, &work.hidden[row * hidden], normed, hidden);
                work.inputs[0].put(model.head, i, normed);
            }
            meeting.wait();
            const Job job = {&model.head, &work.inputs[0], pass.logits};
            products(&job, 1, pass.wanted_count, model.head.outputs, false, thread, team, bench);
        }
    }
}

// ---------------------------------------------------------------- packing

template <class Element>
void pack_tiles(int64_t outputs, int64_t inputs, int bits, Element element, uint8_t* to, int threads) {
    const int64_t depth = (inputs + DEPTH - 1) / DEPTH, tiles = (outputs + LANES - 1) / LANES;
    const int64_t bytes = TILE * bits / 8;
#pragma omp parallel for num_threads(threads)
    for (int64_t tile = 0; tile < tiles; tile++)
        for (int64_t at = 0; at < depth; at++) {
            uint16_t elements[TILE] = {};  // [pair][output][2]
            for (int input = 0; input < DEPTH; input++)
                for (int output = 0; output < LANES; output++) {
                    const int64_t o = LANES * tile + output, i = DEPTH * at + input;
                    if (o < outputs && i < inputs)
                        elements[DEPTH * (input / 2) + 2 * output + input % 2] = element(o, i);
                }
            uint8_t* target = to + (tile * depth + at) * bytes;
            if (bits == 16) {
                std::memcpy(target, elements, sizeof elements);
            } else if (bits == 8) {
                for (int i = 0; i < TILE; i++) target[i] = uint8_t(elements[i] ^ 128);
            } else {
                uint16_t lanes[TILE / 4];
                for (int i = 0; i < TILE / 4; i++) {
                    const int quad = i / DEPTH, place = i % DEPTH;
                    lanes[i] = 0;
                    for (int row = 0; row < 4; row++)
                        lanes[i] |= uint16_t(elements[DEPTH * (4 * quad + row) + place] << 4 * row);
                }
                std::memcpy(target, lanes, sizeof lanes);
            }
        }
}

}  // namespace

extern "C" {

// 0, or 1 where memory ran out.
int forward(const Model* model, const Store* store_, const Pass* pass, int threads) {
    try {
        if (store_->type == 0) {
            run<AsFloat>(*model, *store_, *pass, threads);
        } else {
            run<AsBf16>(*model, *store_, *pass, threads);
        }
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// to: [rows, outputs] = from [rows, inputs] times the matrix, plus its bias. For tests.
int apply(const Linear* linear, const float* from, int64_t rows, float* to, int threads) {
    try {
        Inputs inputs;
        inputs.reserve(*linear, rows);
        std::vector<Bench> benches(static_cast<size_t>(threads));
        for (Bench& bench : benches) bench.reserve(*linear, rows);
        for (int64_t row = 0; row < rows; row++) inputs.put(*linear, row, from + row * linear->inputs);
        const Job job = {linear, &inputs, to};
#pragma omp parallel num_threads(threads)
        {
            const int thread = omp_get_thread_num();
            products(&job, 1, rows, linear->outputs, false, thread, omp_get_num_threads(),
                     benches[size_t(thread)]);
        }
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// Values [outputs, inputs], one byte each or at 16 bits bfloat16, into tiles. What is beyond the matrix is 0.
void pack(const uint8_t* values, int64_t outputs, int64_t inputs, int bits, uint8_t* to, int threads) {
    const auto element = [=](int64_t output, int64_t input) {
        const int64_t at = output * inputs + input;
        if (bits < 16) return uint16_t(values[at]);
        uint16_t found;
        std::memcpy(&found, values + 2 * at, 2);
        return found;
    };
    pack_tiles(outputs, inputs, bits, element, to, threads);
}

// Codes of a GPTQ checkpoint, [inputs * stored_bits / 32, outputs] words, into tiles of `bits` bits; the n-th
// input of the tiles is the order[n]-th of the words.
void pack_words(const uint32_t* words, int64_t outputs, int64_t inputs, int stored_bits, const int32_t* order,
                int bits, uint8_t* to, int threads) {
    const uint32_t mask = (uint32_t(1) << stored_bits) - 1;
    const auto element = [=](int64_t output, int64_t input) {
        const int64_t bit = int64_t(order[input]) * stored_bits, word = bit / 32;
        uint64_t stream = words[word * outputs + output];
        // The code may end in the next word.
        if (bit % 32 + stored_bits > 32) stream |= uint64_t(words[(word + 1) * outputs + output]) << 32;
        return uint16_t(stream >> bit % 32 & mask);
    };
    pack_tiles(outputs, inputs, bits, element, to, threads);
}

// 0 portable, 1 AVX-512 BF16, 2 AMX
int best() { return best_unit(); }
void use(int wanted) { unit = Unit(wanted); }

// Bytes of the structures, for the Python side to compare with its own.
int size_of(int structure) {
    const int sizes[] = {sizeof(Linear), sizeof(Layer), sizeof(Model), sizeof(Store), sizeof(Pass)};
    return sizes[structure];
}

}  // extern "C"
