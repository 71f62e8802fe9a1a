// SPDX-License-Identifier: Apache-2.0

package delta

import (
	"container/list"
	"time"
)

const (
	// maxAnswers bounds the memory of answers. One that has been pushed out
	// is asked for again.
	maxAnswers = 4096

	// absentFor is how long an answer "there is no such thing" is believed.
	// istiod does not tell when there is one later: it pushes by resource name
	// alone, and an address is none.
	absentFor = 5 * time.Second

	// presentFor is how long a name that was answered for is not asked for
	// again. Who asks all the same has not found what he wanted in the answer,
	// and is not to make it a flood.
	presentFor = time.Second
)

// answers remembers the latest answers to demands, of which there may be as
// many as a pod cares to make up: the least recently answered goes first.
type answers struct {
	byName map[string]*list.Element
	order  list.List // of answer; the latest in front
}

type answer struct {
	name    string
	present bool
	at      time.Time
}

func (m *answers) note(name string, present bool, now time.Time) {
	if m.byName == nil {
		m.byName = map[string]*list.Element{}
	}
	if e := m.byName[name]; e != nil {
		e.Value = answer{name, present, now}
		m.order.MoveToFront(e)
		return
	}
	m.byName[name] = m.order.PushFront(answer{name, present, now})
	if m.order.Len() > maxAnswers {
		last := m.order.Back()
		delete(m.byName, last.Value.(answer).name)
		m.order.Remove(last)
	}
}

// fresh reports whether the answer to a name is known and good still. Without
// a stream an absence is as good as ever: like all that we know, it stays in
// force until somebody can say otherwise.
func (m *answers) fresh(name string, streaming bool, now time.Time) bool {
	e := m.byName[name]
	if e == nil {
		return false
	}
	a := e.Value.(answer)
	switch age := now.Sub(a.at); {
	case a.present:
		return age < presentFor
	case !streaming:
		return true
	default:
		return age < absentFor
	}
}

// absent reports whether the latest answer to a name was that there is no such
// thing.
func (m *answers) absent(name string) bool {
	e := m.byName[name]
	return e != nil && !e.Value.(answer).present
}
