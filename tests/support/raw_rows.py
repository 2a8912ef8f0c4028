"""Whole rows of the raw files of each form."""


def finqa_item(number: int = 1, **changes) -> dict:
    """A whole FinQA item; keyword arguments replace keys of the item or of its qa."""
    qa = {"question": f"what is the change of case {number} ?", "program": "subtract(5, 3)", "exe_ans": 2.0}
    item = {
        "id": f"ABC/2010/page_{number}.pdf-1",
        "filename": f"ABC/2010/page_{number}.pdf",
        "pre_text": [f"first sentence of {number} .", 'second , with { braces } and "quotes" .'],
        "post_text": ["after the table ."],
        "table": [["", "2010", "2009"], ["cash", "5", "3"]],
    }
    for key, value in changes.items():
        (item if key in item or key in ("qa", "extra") else qa)[key] = value
    return {"qa": qa} | item


def gsm8k_item(number):
    return {"question": f"{number} and {number} ?", "answer": f"It is <<2*{number}=1>>.\n#### {2 * number}"}


def math_item(**changes) -> dict:
    item = {"problem": "p ?", "level": "Level 3", "type": "Algebra", "solution": r"so \boxed{\frac{1}{2}}."}
    return item | changes
