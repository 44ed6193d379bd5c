"""Event-time windows: watermarks, panes, firing, lateness. Pure: no I/O, and time only as an argument."""
