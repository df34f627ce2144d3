"""From a column of labels to what is learned: classes by name, noise, weights of classes.

In: a column of a table. Out: class indices, zeros and ones or probabilities, as arrays. Images and files never belong
here.
"""
