"""Whether an answer is right, how it was reached, and why it is wrong: FinQA programs, GSM8K and MATH
answers. What a model writes is hostile input: parses are bounded, and symbolic algebra runs in a process
that can be killed."""
