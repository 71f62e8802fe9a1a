// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"reflect"
	"sync/atomic"
)

// A Source is a resolv.conf that may change while it is used. Forwarders that
// were given one take each change before their next question, and forget what
// they learnt from the servers of before.
type Source struct{ conf atomic.Pointer[ResolvConf] }

// NewSource returns a source that says c.
func NewSource(c ResolvConf) *Source {
	s := new(Source)
	s.conf.Store(&c)
	return s
}

// Set has the source say c from now on. To say the same again changes nothing.
func (s *Source) Set(c ResolvConf) {
	if !reflect.DeepEqual(*s.conf.Load(), c) {
		s.conf.Store(&c)
	}
}

// now is what the source says; nil without a source. The value is not changed
// later: what is said next is another one.
func (s *Source) now() *ResolvConf {
	if s == nil {
		return nil
	}
	return s.conf.Load()
}
