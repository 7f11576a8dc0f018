/* Products are not planned here: cuDNN asks for the version alone. */
unsigned long cublasLtGetVersion() { return 120901; }
