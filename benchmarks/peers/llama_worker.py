"""llama.cpp as a contestant; run by the Python that has llama-cpp-python: ``llama_worker.py ORDER.json``.

Token ids in, token ids out: each step is given the token that the reference answer has there, and the likeliest
token of the model is kept beside it.
"""

import ctypes
import json
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    began = time.perf_counter()
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP if order["mmap"] else llama_cpp.LLAMA_LOAD_MODE_NONE
    model = llama_cpp.llama_model_load_from_file(order["file"].encode(), params)
    if not model:
        sys.exit("llama.cpp cannot load the file")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = order["context"]
    settings.n_batch = settings.n_ubatch = 512
    settings.n_threads = settings.n_threads_batch = order["threads"]
    context = llama_cpp.llama_init_from_model(model, settings)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    loaded = time.perf_counter()

    def decode(tokens: list[int]) -> int:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))) != 0:
            sys.exit("llama.cpp cannot decode")
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        row = np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (vocabulary,))
        return int(row.argmax())

    started = time.perf_counter()
    prompt = order["prompt"]
    likeliest, times = [], []
    for begin in range(0, len(prompt), 512):
        choice = decode(prompt[begin : begin + 512])
    likeliest.append(choice)
    times.append(time.perf_counter() - started)
    for token in order["answer"][:-1]:
        if time.perf_counter() - started > order["seconds"]:
            break
        likeliest.append(decode([token]))
        times.append(time.perf_counter() - started)
    print(json.dumps({"load_s": loaded - began, "token_times_s": times, "likeliest": likeliest}))


if __name__ == "__main__":
    main()
