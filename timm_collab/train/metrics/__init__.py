"""Metrics: the score that heads are compared by, and the detailed scores of an evaluation.

In: logits and labels. Out: numbers. Models, loaders and processes never belong here.
"""
