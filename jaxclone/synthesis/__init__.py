"""From a Voice and a waveform to speech."""
