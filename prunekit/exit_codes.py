"""What the process that ran a command, or a job of a sweep, says about it when it ends."""

DONE, CRASHED, MISSED, BAD_CONFIG, INTERRUPTED = 0, 1, 3, 4, 130
FROM_BEST_TO_WORST = (DONE, MISSED, BAD_CONFIG, CRASHED)  # of a sweep's jobs
