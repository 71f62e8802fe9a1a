// SPDX-License-Identifier: Apache-2.0

package top

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/gdamore/tcell/v2"
)

// Run shows frames on the process's terminal until somebody presses q, or ctx
// ends. The terminal is as it was when it returns.
func Run(ctx context.Context, cfg Config) error {
	tty, err := tcell.NewStdIoTty()
	if err != nil {
		return fmt.Errorf("open terminal: %w", err)
	}
	screen, err := tcell.NewTerminfoScreenFromTty(tty)
	if err != nil {
		return fmt.Errorf("open terminal: %w (--once needs none)", err)
	}
	if err := screen.Init(); err != nil {
		return fmt.Errorf("open terminal: %w (--once needs none)", err)
	}
	defer screen.Fini()
	return run(ctx, cfg, screen)
}

// A display is what is on the screen, and what of it one looks at.
type display struct {
	screen tcell.Screen
	frame  frame
	err    error // of the last sample
	page   int   // of frame.tables
	scroll int   // rows that are above the window
	paused bool
}

// A news is what the sampler has found out.
type news struct {
	frame frame
	err   error
}

func run(ctx context.Context, cfg Config, screen tcell.Screen) error {
	ctx, cancel := context.WithCancel(ctx)
	var workers sync.WaitGroup // two; end by cancel
	defer workers.Wait()
	defer cancel()
	samples, events := make(chan news), make(chan tcell.Event)
	workers.Go(func() { watch(ctx, cfg, samples) })
	workers.Go(func() { screen.ChannelEvents(events, ctx.Done()) })
	d := &display{screen: screen}
	d.frame = build(cfg.Place, sample{}, sample{at: time.Now()})
	for {
		d.draw()
		select {
		case <-ctx.Done():
			return nil
		case n := <-samples:
			if d.err = n.err; n.err == nil && !d.paused {
				d.frame = n.frame
			}
		case ev, open := <-events:
			if !open || d.event(ev) {
				return nil
			}
		}
	}
}

// event does what an event of the terminal asks for, and says whether that is
// the end.
func (d *display) event(ev tcell.Event) (quit bool) {
	switch ev := ev.(type) {
	case *tcell.EventResize:
		d.screen.Sync()
	case *tcell.EventKey:
		return d.key(ev)
	}
	return false
}

// watch takes samples and tells what they say.
func watch(ctx context.Context, cfg Config, samples chan<- news) {
	tick := time.NewTicker(cfg.interval())
	defer tick.Stop()
	var before sample
	for {
		now, err := take(ctx, cfg)
		n := news{err: err}
		if err == nil {
			n.frame = build(cfg.Place, before, now)
			before = now
		}
		select {
		case samples <- n:
		case <-ctx.Done():
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// key does what a key asks for, and says whether that is the end.
func (d *display) key(ev *tcell.EventKey) (quit bool) {
	_, height := d.screen.Size()
	page := max(height-bodyTop-1, 1)
	switch ev.Key() {
	case tcell.KeyCtrlC, tcell.KeyEscape:
		return true
	case tcell.KeyDown:
		d.scroll++
	case tcell.KeyUp:
		d.scroll--
	case tcell.KeyPgDn:
		d.scroll += page
	case tcell.KeyPgUp:
		d.scroll -= page
	case tcell.KeyTab, tcell.KeyRight:
		d.turn(d.page + 1)
	case tcell.KeyBacktab, tcell.KeyLeft:
		d.turn(d.page + len(d.frame.tables) - 1)
	case tcell.KeyRune:
		switch r := ev.Rune(); {
		case r == 'q':
			return true
		case r == ' ':
			d.paused = !d.paused
		case r >= '1' && int(r-'1') < len(d.frame.tables):
			d.turn(int(r - '1'))
		}
	}
	return false
}

func (d *display) turn(page int) { d.page, d.scroll = page%len(d.frame.tables), 0 }

// bodyTop is the first line of a table: above it are the summary, the pages
// and the table's header.
const bodyTop = 3

func (d *display) draw() {
	s := d.screen
	s.Clear()
	_, height := s.Size()
	plain, bold, dim := tcell.StyleDefault, tcell.StyleDefault.Bold(true), tcell.StyleDefault.Dim(true)
	first := d.frame.summary
	if d.err != nil {
		first = "CANNOT LOOK: " + harmless(d.err.Error())
	}
	d.put(0, 0, "ztunnel top  "+first, bold)
	x := 0
	for i, t := range d.frame.tables {
		style := dim
		if i == d.page {
			style = bold.Reverse(true)
		}
		x += d.put(x, 1, fmt.Sprintf(" %d %s (%d) ", i+1, t.title, len(t.rows)), style) + 1
	}
	status := "q quit  tab next  arrows scroll  space pause"
	if d.paused {
		status = "PAUSED  " + status
	}
	d.put(x, 1, status, dim)
	t := d.frame.tables[d.page]
	widths := t.widths()
	d.put(0, bodyTop-1, line(t.header, widths), bold.Underline(true))
	room := max(height-bodyTop, 0)
	d.scroll = max(min(d.scroll, len(t.rows)-room), 0)
	for i, row := range t.rows[d.scroll:min(d.scroll+room, len(t.rows))] {
		d.put(0, bodyTop+i, line(row, widths), plain)
	}
	s.Show()
}

// put writes a line as far as there is room, and returns its length.
func (d *display) put(x, y int, text string, style tcell.Style) int {
	width, height := d.screen.Size()
	n := 0
	for _, r := range text {
		if x+n < width && y < height {
			d.screen.SetContent(x+n, y, r, nil, style)
		}
		n++
	}
	return n
}
