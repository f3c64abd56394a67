    // Results that are not f32 are all stored through workgroup memory.
