"""What a run leaves behind: its folder, log, summary, plots, trackers, the saved tree and the saved head.

In: rows, scores and models of a run, or the folder of a finished one. Out: files, lines on the screen, and the finished
run read back. Nothing here trains or evaluates.
"""
