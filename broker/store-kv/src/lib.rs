//! The embedded engines sled and fjall behind one small key-value trait.
