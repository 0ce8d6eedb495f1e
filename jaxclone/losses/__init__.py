"""How far two things are apart: functions returning `(scalar, metrics)`."""
