"""The structures of kernels.cpp, field for field, as ctypes."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2  # how tables and stores are kept
ACTIVATIONS = {
    "silu": 0,
    "gelu_pytorch_tanh": 1,
    "gelu_new": 1,
    "gelu_fast": 1,
    "gelu": 2,
}  # Hugging Face's names


class Linear(Structure):
    _fields_ = (
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("bits", c_int32),
        ("group", c_int32),
        ("offset", c_int32),
        ("groups", c_int32),
        ("scale_type", c_int32),
        ("padding", c_int32),
        ("packed", c_void_p),
        ("scales", c_void_p),
        ("zeros", c_void_p),
        ("bias", c_void_p),
        ("order", c_void_p),
    )


class Norm(Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("epsilon", c_float))


class Layer(Structure):
    _fields_ = (
        ("before_attention", Norm),
        ("before_mlp", Norm),
        ("attention_in", Linear * 3),
        ("attention_out", Linear),
        ("mlp_in", Linear * 2),
        ("mlp_out", Linear),
        ("attention_ins", c_int32),
        ("mlp_ins", c_int32),
        ("window", c_int32),
        ("padding", c_int32),
    )


class Model(Structure):
    _fields_ = (
        ("hidden", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("layers", c_int64),
        ("positions", c_int64),
        ("activation", c_int32),
        ("table_type", c_int32),
        ("table", c_void_p),
        ("learned", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("layer", POINTER(Layer)),
        ("last", Norm),
        ("head", Linear),
        ("scale", c_float),
        ("padding", c_int32),
    )


class Store(Structure):
    _fields_ = (
        ("keys", POINTER(c_void_p)),
        ("values", POINTER(c_void_p)),
        ("key_strides", POINTER(c_int64)),
        ("value_strides", POINTER(c_int64)),
        ("type", c_int32),
        ("padding", c_int32),
    )


class Pass(Structure):
    _fields_ = (
        ("count", c_int64),
        ("tokens", c_void_p),
        ("slots", c_void_p),
        ("positions", c_void_p),
        ("wanted_count", c_int64),
        ("wanted", c_void_p),
        ("logits", c_void_p),
    )


def declare(library: ctypes.CDLL) -> None:
    """Give the functions of the library their types."""
    library.forward.argtypes = (POINTER(Model), POINTER(Store), POINTER(Pass), ctypes.c_int)
    library.apply.argtypes = (POINTER(Linear), c_void_p, c_int64, c_void_p, ctypes.c_int)
    library.pack.argtypes = (c_void_p, c_int64, c_int64, ctypes.c_int, c_void_p, ctypes.c_int)
    library.pack_words.argtypes = (
        c_void_p, c_int64, c_int64, ctypes.c_int, c_void_p, ctypes.c_int, c_void_p, ctypes.c_int
    )  # fmt: skip
    library.use.argtypes = (ctypes.c_int,)
    for function in (library.forward, library.apply, library.best):
        function.restype = ctypes.c_int
    for function in (library.pack, library.pack_words, library.use):
        function.restype = None
