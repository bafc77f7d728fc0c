"""What predictions are worth: meters that count images, scores, and what scores are compared with."""

Scores = dict[str, dict[str, float]]  # {task: {metric: value}}
