"""Records of runs and study files: their schema, their validation, the run key, and where they lie."""

# Scores of rows out of distribution by their names in records and columns, the default of `predict --ood` first.
OOD_SCORES = {
    "energy": "log-sum-exp of the logits",
    "msp": "largest softmax probability",
    "mahalanobis": "negative squared Mahalanobis distance to the nearest class mean",
    "cosine": "largest cosine similarity to a training row",
}

# Which rows the false positive rate at 95 % true positives counts.
FPR_RULE = "the rows out of distribution at or above the score at position n // 20 of the n sorted report rows"
