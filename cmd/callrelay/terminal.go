package main

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

func isTerminal(out io.Writer) bool { return widthOf(out) > 0 }

// widthOf is how many columns the terminal has that out is; 0: it is none.
func widthOf(out io.Writer) int {
	f, ok := out.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	if size.Col == 0 {
		return 80 // a terminal that does not say
	}
	return int(size.Col)
}

// red is for what must not be overlooked: on a terminal, unless the person wants no colours (no-color.org).
func red(out io.Writer, text string) string {
	if !isTerminal(out) || os.Getenv("NO_COLOR") != "" {
		return text
	}
	return "\x1b[1;31m" + text + "\x1b[0m"
}

// cutter cuts lines at a width, for tables whose last column is a summary of what another command shows in full.
type cutter struct {
	out    io.Writer
	width  int
	column int
}

// cut is out with lines cut to the width of the terminal; what is no terminal gets them whole.
func cut(out io.Writer) io.Writer {
	if width := widthOf(out); width > 0 {
		return &cutter{out: out, width: width}
	}
	return out
}

func (c *cutter) Write(p []byte) (int, error) {
	kept := make([]rune, 0, len(p))
	for _, r := range string(p) {
		if c.column++; r == '\n' {
			c.column = 0
		}
		if c.column <= c.width {
			kept = append(kept, r)
		}
	}
	if _, err := io.WriteString(c.out, string(kept)); err != nil {
		return 0, err
	}
	return len(p), nil
}
