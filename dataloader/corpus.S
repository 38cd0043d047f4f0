// Puts the file CORPUS_FILE into the program as it is, between two labels. No instruction set is involved, only ELF.
    .section .rodata
    .globl corpus_begin
    .globl corpus_end
corpus_begin:
    .incbin CORPUS_FILE
corpus_end:
    .section .note.GNU-stack, "", %progbits
