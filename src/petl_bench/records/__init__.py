"""Records of runs and study files: their schema, their validation, the run key, and where they lie."""

# Scores of rows out of distribution by their names in records and columns, the default of `predict --ood` first.
OOD_SCORES = {
    "energy": "log-sum-exp of the logits",
    "msp": "largest softmax probability",
    "mahalanobis": "negative squared Mahalanobis distance to the nearest class mean",
    "cosine": "largest cosine similarity to a training row",
}
