"""Builds the one native core: every C source of libdetect plus its Python binding."""

from pathlib import Path

from setuptools import Extension, setup

core = Path("libdetect")
setup(
    ext_modules=[
        Extension(
            "anomaly._core",
            sources=sorted(map(str, [*core.glob("*.c"), *core.glob("python/*.c")])),
            depends=sorted(map(str, [*core.glob("*.h"), *core.glob("python/*.h")])),
            include_dirs=[str(core)],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            # No fused multiply-add: the same seed gives the same bits on every platform.
            extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off", "-Wall", "-Wextra"],
            extra_link_args=["-pthread"],
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
