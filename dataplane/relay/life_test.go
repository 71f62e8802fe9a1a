// SPDX-License-Identifier: Apache-2.0

package relay_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

var errEnough = errors.New("enough")

func await(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(15 * time.Second):
		t.Fatalf("%s: nothing", what)
	}
}

func TestALifeIsAContext(t *testing.T) {
	leak.Check(t)
	var all relay.Lives
	l := all.Begin()
	if err := l.Err(); err != nil {
		t.Fatal(err)
	}
	derived, cancel := context.WithTimeoutCause(l, time.Hour, errors.New("late"))
	defer cancel()
	hooked := make(chan struct{})
	stopped := context.AfterFunc(l, func() { t.Error("called off, and called") })
	context.AfterFunc(l, func() { close(hooked) })
	if !stopped() {
		t.Error("it could not be called off")
	}
	l.End(errEnough)
	l.End(errors.New("again"))
	await(t, "Done", l.Done())
	await(t, "derived", derived.Done())
	await(t, "AfterFunc", hooked)
	for name, ctx := range map[string]context.Context{"life": l, "derived": derived} {
		if err := context.Cause(ctx); !errors.Is(err, errEnough) {
			t.Errorf("%s: cause %v", name, err)
		}
	}
	other := all.Begin()
	other.End(nil)
	if err := other.Err(); !errors.Is(err, context.Canceled) {
		t.Errorf("ended by itself, and is %v", err)
	}
}

func TestALifeAskedForAfterItsEndIsOver(t *testing.T) {
	leak.Check(t)
	var all relay.Lives
	l := all.Begin()
	l.End(errEnough)
	await(t, "Done", l.Done())
	hooked := make(chan struct{})
	context.AfterFunc(l, func() { close(hooked) })
	await(t, "AfterFunc", hooked)
	w := newWatcher()
	relay.Watch(l, w)
	await(t, "watcher", w.ended)
}

// A watcher counts by closing: a second call panics.
type watcher struct{ ended chan struct{} }

func newWatcher() *watcher    { return &watcher{make(chan struct{})} }
func (w *watcher) LifeEnded() { close(w.ended) }
func (w *watcher) isEnded() bool {
	select {
	case <-w.ended:
		return true
	default:
		return false
	}
}

func TestLivesEndTogether(t *testing.T) {
	leak.Check(t)
	var all relay.Lives
	var watchers [5]*watcher
	var lives [5]*relay.Life
	for i := range watchers {
		watchers[i], lives[i] = newWatcher(), all.Begin()
		relay.Watch(lives[i], watchers[i])
	}
	lives[4].End(nil) // the first of the list
	lives[0].End(nil) // the last
	lives[2].End(nil)
	if watchers[1].isEnded() || watchers[3].isEnded() || !watchers[2].isEnded() {
		t.Error("the wrong ones ended")
	}
	relay.Unwatch(lives[3], nil)
	all.End(errEnough)
	if !watchers[1].isEnded() || watchers[3].isEnded() {
		t.Error("one did not hear of it, or one who did not want to did")
	}
	for _, i := range []int{1, 3} {
		if !errors.Is(lives[i].Err(), errEnough) {
			t.Errorf("%d: %v", i, lives[i].Err())
		}
	}
	if late := all.Begin(); !errors.Is(late.Err(), errEnough) {
		t.Errorf("begun after the end: %v", late.Err())
	}
}
