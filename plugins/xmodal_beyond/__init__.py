"""What goes beyond PaRe: other gates, schedules and views."""
