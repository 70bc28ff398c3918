"""Extensions of PaRe: other gates, schedules and views."""
