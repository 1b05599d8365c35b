//! egressnat-operator
