"""From `data.path` to tables: whichever place and format, which files are which split.

In: `data.path` and the keys that go with it. Out: splits as tables of encoded images and labels, what was left out, and
what is odd about it. What a label means or an image shows never belongs here.
"""
