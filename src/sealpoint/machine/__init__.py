"""What installs the drop-in and diagnoses the machine.  Nothing here runs at a dump."""
