"""The client half of Mailweir's producer."""
