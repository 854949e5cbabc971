"""Texts that tokenizers get wrong."""

from __future__ import annotations

from hypothesis import strategies

TEXTS = [
    "",
    " ",
    "\n",
    "\t",
    "\r\n",
    "def add(a, b):\n    return a + b\n",
    "if x:\n\treturn [i for i in range(10)]\n\n\n",
    'int main(void) {\r\n\tprintf("%d\\n", 0x1F);\r\n}\r\n',
    'fn main() { let s: &\'static str = r#"a"#; }',
    "SELECT * FROM t WHERE a='it''s' -- 100%\n;",
    '<div class="a">&nbsp;</div>',
    "x = {'a': 1, \"b\": [2, 3.14e-10]}  # don't, I'LL, we've, they'Re",
    "    four spaces\n        eight\n  two\n\ttab \t mixed\n",
    "a" + " " * 1 + "b" + " " * 2 + "c" + " " * 3 + "d" + " " * 31 + "e" + " " * 100,
    "trailing   ",
    "   leading",
    "\n\n\n  \n \n",
    "line\rold mac\rline",
    "1234567890 3.14159 1,000,000 ١٢٣ ४५६ Ⅷ ½ ²",
    "ALLCAPS camelCase snake_case SCREAMING_SNAKE kebab-case",
    "😀 👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪",
    "e\u0301 n\u0303 o\u0308\u0323 \u1100\u1161\u11a8 \ufb01",
    "é ñ ö Å \u212b",
    "שלום עולם مرحبا بالعالم",
    "你好、世界。こんにちは 안녕하세요",
    "Привет, мир! Ελληνικά हिन्दी ไทย",
    "a\u00a0b\u2009c\u3000d\u200be\u200cf\ufeffg\u2028h\u2029i",
    "\x00\x01\x02\x1b[31mred\x1b[0m\x7f\x85",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|endoftext|><|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
    "<fim_prefix><|im_start><im_end|> < |im_end|> <|IM_END|>",
    "<tool_call>\n{}\n</tool_call>",
    "[PAD151665]",
    "word" * 500,
    "=" * 300,
    "ĠĊâĢ",
    "\U0010ffff\ufffe\ue000",
]

# Mostly the characters that split patterns look at, so that short texts hit their borders.
texts = strategies.one_of(
    strategies.text(max_size=60),
    strategies.text(alphabet=" \n\r\t09aZ'sé.!_{(é好\u0301\u00a0😀", max_size=40),
)
