"""
Load a published or saved student with nothing but Transformers, and generate.

    python examples/load_student.py inheritune-demo --prompt "def __init__(self"
"""

import argparse
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Print what the student writes after a prompt."""
    parser = argparse.ArgumentParser(description="Generate text with a student.")
    parser.add_argument("student", help="Hub id or folder of the student.")
    parser.add_argument("--prompt", default="def __init__(self", help="Text to continue.")
    parser.add_argument("--max-new-tokens", type=int, default=40, help="Tokens to add.")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.student)
    model: Any = AutoModelForCausalLM.from_pretrained(options.student)
    inputs = tokenizer(options.prompt, return_tensors="pt")
    tokens = model.generate(
        **inputs, max_new_tokens=options.max_new_tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id
    )
    print(tokenizer.decode(tokens[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
