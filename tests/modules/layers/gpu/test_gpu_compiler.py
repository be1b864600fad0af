"""Triton's compiler makes every kernel for a GPU that is not there: what its interpreter lets pass may be refused."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install -e '.[kernels]'")

SCRIPT = """
import triton.language as tl
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from livetrain.modules.layers.gpu import attend, kernels

LONG = {"tiles", "firsts", "asks", "ask_begins", "answers", "answer_begins", "offsets", "begins"}
NUMBERS = {"rows", "q_row", "k_row", "v_row", "k", "width", "room", "number", "inner", "m", "units"}
WIDE = {"sums", "curve", "correction", "centre", "valid", "total", "lse", "delta", "gradient", "mean", "variance"}
CONSTANTS = dict(HEADS=2, SCALE=0.25, DIM=16, WIDE=64, BLOCK=32, CAUSAL=True, VALID=True, CENTRE=True, GIVEN=True)
CONSTANTS |= dict(ROWS=16, TILE=32, COLUMNS=32, EPS=1e-8, MOMENTUM=0.1, WORK=tl.float32, SHARED=False)
OTHERS = dict(CAUSAL=False, VALID=False, CENTRE=False, GIVEN=False, SHARED=True)
made = 0
for module, names in ((attend, ["_forward", "_backward_queries", "_backward_keys"]), (kernels, None)):
    names = names or [name for name, value in vars(kernels).items() if hasattr(value, "arg_names") and name[0] != "_"]
    for name in names:
        kernel = getattr(module, name)
        for kind, precision, changed in (("fp32", "ieee", {}), ("bf16", "tf32", OTHERS)):
            constants = CONSTANTS | changed | {"PRECISION": precision}
            if name.startswith("dice"):
                kind = "fp32"
            types = {}
            for argument in kernel.arg_names:
                types[argument] = "constexpr" if argument in constants else "*fp32" if argument in WIDE else "*" + kind
                types[argument] = "*i64" if argument in LONG else "i32" if argument in NUMBERS else types[argument]
            types |= {"d_e": "*fp32"} if "d_e" in types else {}
            types |= {"k": "*" + kind} if module is attend else {}
            own = {(kernel.arg_names.index(k),): v for k, v in constants.items() if k in kernel.arg_names}
            found = compile(ASTSource(fn=kernel, signature=types, constexprs=own), target=GPUTarget("cuda", 90, 32))
            assert len(found.asm["cubin"]) > 0
            made += 1
print(made)
"""


@pytest.mark.slow
def test_all_kernels_are_made_for_a_gpu(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert int(ran.stdout) == 2 * 16
