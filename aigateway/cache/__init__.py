"""Remembered answers: what makes two requests the same, who waits for whom, what is kept."""
