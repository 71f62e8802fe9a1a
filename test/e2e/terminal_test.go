// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A terminal is the far side of a pty: what a program writes to it moves a
// cursor over a screen, as far as TERM=vt100 goes.
type terminal struct {
	t    *testing.T
	file *os.File      // the master
	done chan struct{} // closed when nobody writes any more

	mu    sync.Mutex
	cells [][]rune // guarded by mu
	x, y  int      // guarded by mu
}

const columns, lines = 180, 24

// newTerminal opens a pty and has cmd, which has not been started, live in it.
func newTerminal(t *testing.T, cmd *exec.Cmd) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	must(t, err)
	must(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	must(t, err)
	must(t, unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: lines, Col: columns}))
	must(t, unix.SetNonblock(int(master.Fd()), true))
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { slave.Close() })
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.Env = append(cmd.Env, "TERM=vt100")
	term := &terminal{t: t, file: master, done: make(chan struct{})}
	for range lines {
		term.cells = append(term.cells, []rune(strings.Repeat(" ", columns)))
	}
	go term.read()
	t.Cleanup(func() {
		master.Close()
		<-term.done
	})
	return term
}

func (m *terminal) read() {
	defer close(m.done)
	buf := make([]byte, 4096)
	var rest string
	for {
		n, err := m.file.Read(buf)
		rest = m.take(rest + string(buf[:n]))
		if err != nil {
			return
		}
	}
}

// take does what the bytes say, and returns what is not complete yet.
func (m *terminal) take(s string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for s != "" {
		switch c := s[0]; {
		case c == 0x1b:
			n := m.escape(s)
			if n == 0 {
				return s
			}
			s = s[n:]
		case c == '\r':
			m.x, s = 0, s[1:]
		case c == '\n':
			m.y, s = min(m.y+1, lines-1), s[1:]
		case c < ' ':
			s = s[1:]
		default:
			if m.x < columns {
				m.cells[m.y][m.x] = rune(c)
				m.x++
			}
			s = s[1:]
		}
	}
	return ""
}

// escape does one sequence and returns its length; 0: it is not complete.
func (m *terminal) escape(s string) int {
	if len(s) < 2 {
		return 0
	}
	switch s[1] {
	case '[':
	case '(', ')', '#':
		return min(len(s), 3)
	default:
		return 2
	}
	end := strings.IndexFunc(s[2:], func(r rune) bool { return r >= '@' && r <= '~' })
	if end < 0 {
		return 0
	}
	var args [2]int
	for i, text := range strings.SplitN(s[2:2+end], ";", 2) {
		args[i], _ = strconv.Atoi(text) // empty is 0
	}
	switch s[2+end] {
	case 'H':
		m.y, m.x = min(max(args[0], 1), lines)-1, min(max(args[1], 1), columns)-1
	case 'C':
		m.x = min(m.x+max(args[0], 1), columns-1)
	case 'A':
		m.y = max(m.y-max(args[0], 1), 0)
	case 'K':
		for x := m.x; x < columns; x++ {
			m.cells[m.y][x] = ' '
		}
	case 'J':
		for y := range m.cells {
			m.cells[y] = []rune(strings.Repeat(" ", columns))
		}
	}
	return 2 + end + 1
}

func (m *terminal) text() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b strings.Builder
	for _, line := range m.cells {
		b.WriteString(strings.TrimRight(string(line), " ") + "\n")
	}
	return b.String()
}

// shows waits for a line that has all texts, in this order.
func (m *terminal) shows(texts ...string) {
	m.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		screen := m.text()
		for line := range strings.Lines(screen) {
			found := true
			for _, text := range texts {
				_, line, found = strings.Cut(line, text)
				if !found {
					break
				}
			}
			if found {
				return
			}
		}
		if time.Now().After(end) {
			m.t.Fatalf("no line with %q on the screen:\n%s", texts, screen)
		}
	}
}

func (m *terminal) press(keys string) {
	m.t.Helper()
	_, err := m.file.WriteString(keys)
	must(m.t, err)
}
