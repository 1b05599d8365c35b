//! egressnat-agent
