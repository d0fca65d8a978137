"""Records of runs and study files: their schema, their validation, the run key, and their locations."""

# Scores for out-of-distribution rows by their names in records and columns; `predict --ood` uses the first by default.
OOD_SCORES = {
    "energy": "log-sum-exp of the logits",
    "msp": "largest softmax probability",
    "mahalanobis": "negative squared Mahalanobis distance to the nearest class mean",
    "cosine": "largest cosine similarity to a training row",
}

# The rows that count as positive in the false positive rate at 95 % true positives.
FPR_RULE = "the rows out of distribution at or above the score at position n // 20 of the n sorted report rows"
