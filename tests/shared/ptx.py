"""Compile the Triton kernels for a GPU that is not there, down to its machine code.

    python tests/shared/ptx.py [--targets 90,80] [--types float32] [--sizes small] [--ops ssd]

A stand-in for the driver names the GPU, and every launch stops after compiling; so kernels are
specialised by the arguments that the forms really pass. Prints one line of JSON for each kernel.
This says that a kernel compiles and fits; what it computes, the interpreter and a GPU must say.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time

# Shared memory that one program may have, by compute capability: CUDA C++ Programming Guide, table
# "Technical Specifications per Compute Capability"
SHARED = {75: 65_536, 80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448}


def offline(target: int, launches: list[dict]) -> None:
    """Let every launch of a kernel compile for this compute capability, note it, and stop there."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class Driver:
        def get_current_target(self):
            return GPUTarget("cuda", target, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

    run = getattr(JITFunction.run, "compiles", JITFunction.run)

    def compile_only(self, *arguments, grid, warmup, **options):
        start = time.perf_counter()
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        launches.append(
            {
                "kernel": self.fn.__qualname__,
                "grid": list(grid),
                "shared": kernel.metadata.shared,
                "ptx": len(kernel.asm["ptx"]),
                "machine_code": len(kernel.asm["cubin"]),
                "seconds": round(time.perf_counter() - start, 2),
            }
        )
        return kernel

    compile_only.compiles = run
    JITFunction.run = compile_only
    for function in jit_functions():
        function.device_caches.clear()  # compiled for another target
    driver.set_active(Driver())


def jit_functions() -> list:
    from triton.runtime.jit import JITFunction

    modules = [m for name, m in sys.modules.items() if name.startswith("refimpl.kernels")]
    found = [value for module in modules for value in vars(module).values()]
    return [value for value in found if isinstance(value, JITFunction)]


def compile_operation(op: str, dtype: str, size: str) -> None:
    """Call the Triton form, and its way back, with the example of this size."""
    import torch

    from refimpl.kernels import form, operations

    arguments = operations()[op].example(size, dtype=getattr(torch, dtype))
    leaves = {
        name: v.requires_grad_() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for name, v in arguments.items()
    }
    results = form(op, "triton")(**leaves)
    results = results if isinstance(results, tuple) else (results,)
    if results[0].requires_grad:
        sum(result.sum() for result in results).backward()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default="90")
    parser.add_argument("--types", default="float32")
    parser.add_argument("--sizes", default="small")
    parser.add_argument("--ops", default="")
    parser.add_argument("--no-import", action="store_true", help="see that nothing imports Triton")
    chosen = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # as it is, without the warning
    from refimpl.kernels import operations

    found = operations()
    if chosen.no_import:
        for operation in found.values():
            operation.function(**operation.example("small"))
        early = [name for name in sys.modules if name.split(".")[0] == "triton"]
        print(json.dumps({"imported_early": early}))
    ops = chosen.ops.split(",") if chosen.ops else list(found)
    failed = 0
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        for target in map(int, chosen.targets.split(",")):
            launches: list[dict] = []
            offline(target, launches)
            for op in ops:
                for size in chosen.sizes.split(","):
                    for dtype in chosen.types.split(","):
                        told = {"op": op, "size": size, "type": dtype, "target": target}
                        launches.clear()
                        try:
                            compile_operation(op, dtype, size)
                        except Exception as error:
                            failed += 1
                            print(json.dumps(told | {"error": f"{type(error).__name__}: {error}"}))
                        for launch in launches:
                            print(json.dumps(told | launch), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
