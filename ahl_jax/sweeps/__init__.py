"""Many runs that differ in one setting each: points, tables, figures."""
