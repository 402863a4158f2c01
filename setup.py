"""What pyproject.toml cannot say: top-level data/ and notebooks/ come with the wheel, as amir_grpo/shipped/."""

from setuptools import find_packages, setup

SHIPPED = {"amir_grpo.shipped.data": "data", "amir_grpo.shipped.notebooks": "notebooks"}

setup(
    packages=[*find_packages(include=["amir_grpo*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={
        "amir_grpo.sandbox": ["base_policies/*/*"],
        "amir_grpo": ["profiles.toml"],
        "amir_grpo.policies": ["shapes.toml"],
        "amir_grpo.study": ["*.toml", "plan_notes.md"],
        "amir_grpo.shipped.data": ["**/*"],
        "amir_grpo.shipped.notebooks": ["*.ipynb"],
    },
)
