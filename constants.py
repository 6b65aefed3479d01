"""What makes two scores comparable. Literals only: `setup` writes them for this machine, nothing else may."""

TIME_BUDGET = 300  # seconds of training, on the wall clock, from `start` to `evaluate_bpb`
MAX_SEQ_LEN = 2048  # tokens of context in training and in evaluation; a power of two
EVAL_TOKENS = 40 * 524288  # validation tokens that are scored; all of them where the text is shorter
VOCAB_SIZE = 8192  # entries of the tokenizer, the one special token <|bos|> included
DATASET = "fineweb-edu"  # fineweb-edu, climbmix, stdlib, or the path of a folder with parquet, jsonl or txt files
