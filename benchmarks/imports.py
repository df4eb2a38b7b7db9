"""Prints what importing polgrad costs, and fails if an import pulls in what it must not.

python benchmarks/imports.py
"""

import statistics
import subprocess
import sys

HEAVY = ("flax", "optax", "orbax", "tensorflow_datasets", "tokenizers", "ray")

PROGRAM = """
import sys, time
start = time.perf_counter()
{first}
middle = time.perf_counter()
{second}
end = time.perf_counter()
heavy = [m for m in {heavy} if m in sys.modules]
print(middle - start, end - middle, ",".join(heavy) or "-", "jax" in sys.modules)
"""


def measure(first: str, second: str, repeats: int = 5) -> tuple[float, float, str, str]:
    """Median seconds of two statements in fresh interpreters, and what they loaded."""
    rows = []
    program = PROGRAM.format(first=first, second=second, heavy=HEAVY)
    for _ in range(repeats):
        output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        if output.returncode:
            sys.exit(output.stderr)
        rows.append(output.stdout.split())
    first_time, second_time = (statistics.median(float(r[i]) for r in rows) for i in (0, 1))
    return first_time, second_time, rows[0][2], rows[0][3]


def main() -> None:
    """Prints the table; exits with 1 where a limit is passed."""
    alone, _, heavy, jax = measure("import polgrad", "pass")
    print(f"import polgrad                    {alone:.3f} s  (limit 0.1; jax loaded: {jax})")
    base, extra, loaded, _ = measure("import jax", "from polgrad import losses")
    print(f"import jax                        {base:.3f} s")
    print(f"from polgrad import losses, more  {extra:.3f} s  (limit 0.4; heavy modules: {loaded})")
    sys.exit(alone > 0.1 or jax == "True" or extra > 0.4 or heavy != "-" or loaded != "-")


if __name__ == "__main__":
    main()
