"""What a run leaves behind: its folder, log, summary, plots, trackers, the saved tree and the pruned model.

In: rows, scores and models of a run, or the folder of a finished one. Out: files, lines on the screen, and the finished
run as a `Run`. Nothing here trains or evaluates.
"""
