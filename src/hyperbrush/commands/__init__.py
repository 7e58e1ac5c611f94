"""What commands do that is no part of the library: the demos, the doctor, evaluation."""
