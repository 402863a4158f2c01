"""python -m amir_grpo"""

from amir_grpo.cli import main

if __name__ == "__main__":
    main()
