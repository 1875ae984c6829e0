"""What `stemwise COMMAND` runs, a module for each but `train`."""
