"""From encoded images to pixels, and what is known of them: their content, duplicates, what decoding did to them.

In: cells of a table. Out: Pillow images and tensors of pixels. Labels are passed on as they are, and nothing random
belongs here.
"""
