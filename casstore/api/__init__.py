"""The public interface: `Store` with a method for each verb, and the values that it returns."""
