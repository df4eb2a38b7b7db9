"""Packaging of polgrad: metadata, dependency ranges, extras and the `polgrad` command."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "polgrad" / "__init__.py").read_text(), re.MULTILINE
).group(1)

FAMILIES = sorted({path.parent.name for path in (ROOT / "experiments").glob("*/*.py")})
PAPERS = ["polgrad._papers", *(f"polgrad._papers.{family}" for family in FAMILIES)]

# 0.10.2 compiles reductions over many rows wrongly on CPUs: polgrad/_compilers.py.
JAX = ">=0.10,!=0.10.2,<0.12"
CORE = [
    f"jax{JAX}",
    f"jaxlib{JAX}",
    "flax>=0.12.3,<0.14",
    "optax>=0.2.5",
    "chex>=0.1.91",
    "orbax-checkpoint>=0.11.30",
    "tensorstore>=0.1.84",
    "einops>=0.8",
    "tensorflow-datasets>=4.9.9",
    "array-record>=0.8",
    "jaxtyping>=0.3.2",
    "numpy>=2.0",
    "scipy>=1.14",
]
COMMANDS = ["tyro>=1.0", "rich>=13.9", "matplotlib>=3.9", "tensorboardX>=2.6"]
LANGUAGE = [
    "tokenizers>=0.21",
    "safetensors>=0.5",
    "gguf>=0.17",
    "huggingface_hub>=0.30",
    "jinja2>=3.1.6",
    "pyarrow>=17",
]
REWARDS = ["reasoning-gym>=0.1.23", "math-verify>=0.8", "sacrebleu>=2.5"]
WORLDS = ["gymnax>=1.0"]

setup(
    name="polgrad",
    version=VERSION,
    description="Policy gradients in JAX: pure losses, advantages and sharded train steps.",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["polgrad", "polgrad.*"]) + PAPERS,
    # The experiments go with the package, so that `polgrad run NAME` needs no checkout.
    package_dir={"polgrad._papers": "experiments"},
    package_data={"polgrad._papers": ["results/*.json"]},
    install_requires=CORE + COMMANDS + LANGUAGE + REWARDS + WORLDS,
    extras_require={
        "cuda": [f"jax[cuda13]{JAX}", f"jaxlib{JAX}"],
        "tpu": [f"jax[tpu]{JAX}", f"jaxlib{JAX}"],
        "tpu-aot": ["libtpu>=0.0.40"],
        "ray": ["ray>=2.40"],
        "wandb": ["wandb>=0.19"],
        "notebook": ["jupyterlab", "nbclient", "ipykernel"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.120",
            "ruff>=0.9",
            "nbclient>=0.10",
            "ipykernel>=6.29",
        ],
        # Live comparison against the reference implementation of the model families.
        "parity": ["torch>=2.6", "transformers>=5.0"],
    },
    entry_points={"console_scripts": ["polgrad = polgrad.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
