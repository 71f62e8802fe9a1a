// SPDX-License-Identifier: Apache-2.0

package top

import (
	"fmt"
	"strconv"
	"strings"
)

// A series is one line of the metrics page.
type series struct {
	name   string
	labels map[string]string
	value  float64
}

// parse reads the text exposition of Prometheus and OpenMetrics, as far as a
// sample goes: a name, labels, a value. What follows the value is not looked
// at, nor are comments.
func parse(text []byte) ([]series, error) {
	var all []series
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		line = strings.TrimRight(line, "\r\n")
		if line == "" || line[0] == '#' {
			continue
		}
		s, err := parseLine(line)
		if err != nil {
			return nil, fmt.Errorf("metrics, line %d: %w", number, err)
		}
		all = append(all, s)
	}
	return all, nil
}

func parseLine(line string) (series, error) {
	end := strings.IndexAny(line, "{ ")
	if end <= 0 {
		return series{}, fmt.Errorf("no value in %q", line)
	}
	s := series{name: line[:end], labels: map[string]string{}}
	rest := line[end:]
	if rest[0] == '{' {
		var err error
		if rest, err = s.parseLabels(rest[1:]); err != nil {
			return s, err
		}
	}
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return s, fmt.Errorf("no value in %q", line)
	}
	var err error
	s.value, err = strconv.ParseFloat(fields[0], 64)
	if err != nil {
		return s, fmt.Errorf("the value %q is no number", fields[0])
	}
	return s, nil
}

// parseLabels reads name="value", ... up to the brace, and returns what is
// behind it.
func (s *series) parseLabels(rest string) (string, error) {
	for {
		rest = strings.TrimLeft(rest, ", ")
		if after, ok := strings.CutPrefix(rest, "}"); ok {
			return after, nil
		}
		name, value, ok := strings.Cut(rest, `="`)
		if !ok {
			return "", fmt.Errorf("labels without an end in %q", rest)
		}
		var b strings.Builder
		i, closed := 0, false
		for ; i < len(value) && !closed; i++ {
			switch c := value[i]; {
			case c == '"':
				closed = true
			case c == '\\' && i+1 < len(value):
				i++
				if value[i] == 'n' {
					b.WriteByte('\n')
				} else {
					b.WriteByte(value[i])
				}
			default:
				b.WriteByte(c)
			}
		}
		if !closed {
			return "", fmt.Errorf("label %s has no end", name)
		}
		s.labels[name] = b.String()
		rest = value[i:]
	}
}
