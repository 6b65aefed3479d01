"""One run of train.py: started, watched and ended from outside."""
