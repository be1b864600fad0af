package livetrain

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"sort"
)

// Request is what a server scores: features by name, as tensors. Features of the user have one row, those of candidates
// one per candidate; where Rows is set every feature has as many rows. A missing number is NaN.
type Request struct {
	ID      string   // for the server's log; one is drawn where it is empty
	Rows    bool     // score rows, not candidates of one user
	Channel []string // what recall says of each candidate, for the server's log
	Top     int64    // Retrieve: how many items
	tensors []tensor
	err     error
}

type tensor struct {
	name, datatype string
	shape          []int
	data           []byte
}

// IDs sets a feature with one id per row.
func (r *Request) IDs(feature string, ids ...int64) *Request {
	r.add("ids."+feature, "INT64", []int{len(ids)}, words(ids))
	return r
}

// Lists sets a feature with any number of ids per row, newest last; a row without a list is nil. It is also how an id is
// missing: as a list of none.
func (r *Request) Lists(feature string, rows ...[]int64) *Request {
	ids, lengths := []int64{}, make([]int64, len(rows))
	for at, row := range rows {
		ids, lengths[at] = append(ids, row...), int64(len(row))
	}
	r.add("ids."+feature, "INT64", []int{len(ids)}, words(ids))
	r.add("lengths."+feature, "INT64", []int{len(lengths)}, words(lengths))
	return r
}

// Numbers sets a feature with one number per row, or what lies beside the ids of Lists, a weight or time of each.
func (r *Request) Numbers(feature string, numbers ...float32) *Request {
	r.add("dense."+feature, "FP32", []int{len(numbers)}, floats(numbers))
	return r
}

// Vectors sets a feature with a vector per row, or the vectors beside the ids of Lists.
func (r *Request) Vectors(feature string, rows ...[]float32) *Request {
	if len(rows) == 0 {
		return r.Numbers(feature)
	}
	width, all := len(rows[0]), []float32{}
	for at, row := range rows {
		if len(row) != width {
			r.err = fmt.Errorf("%s: row %d has %d numbers, and the first has %d", feature, at, len(row), width)
		}
		all = append(all, row...)
	}
	r.add("dense."+feature, "FP32", []int{len(rows), width}, floats(all))
	return r
}

// Exclude names items that Retrieve leaves out.
func (r *Request) Exclude(items ...int64) *Request {
	r.add("exclude", "INT64", []int{len(items)}, words(items))
	return r
}

func (r *Request) add(name, datatype string, shape []int, data []byte) {
	for _, other := range r.tensors {
		if other.name == name {
			r.err = fmt.Errorf("%s is set twice", name)
		}
	}
	r.tensors = append(r.tensors, tensor{name, datatype, shape, data})
}

type size struct {
	BinaryDataSize *int `json:"binary_data_size,omitempty"`
}

type input struct {
	Name       string `json:"name"`
	Datatype   string `json:"datatype"`
	Shape      []int  `json:"shape"`
	Parameters size   `json:"parameters"`
}

type parameters struct {
	Rows   bool  `json:"rows,omitempty"`
	Top    int64 `json:"top,omitempty"`
	Binary bool  `json:"binary_data_output"`
}

type head struct {
	ID         string     `json:"id,omitempty"`
	Parameters parameters `json:"parameters"`
	Inputs     []input    `json:"inputs"`
}

// Encode returns the request in binary, and how many of its bytes are JSON. Ids come first, and the JSON ends at a
// multiple of 8 bytes, so that the server need not copy tensors.
func (r *Request) Encode() ([]byte, int, error) {
	if r.err != nil {
		return nil, 0, r.err
	}
	sent := append([]tensor{}, r.tensors...)
	sort.SliceStable(sent, func(a, b int) bool {
		if sent[a].datatype != sent[b].datatype {
			return sent[a].datatype == "INT64"
		}
		return sent[a].name < sent[b].name
	})
	if len(r.Channel) > 0 {
		data := []byte{}
		for _, text := range r.Channel {
			data = append(binary.LittleEndian.AppendUint32(data, uint32(len(text))), text...)
		}
		sent = append(sent, tensor{"channel", "BYTES", []int{len(r.Channel)}, data})
	}
	about := head{r.ID, parameters{r.Rows, r.Top, true}, []input{}}
	for at := range sent {
		length := len(sent[at].data)
		about.Inputs = append(about.Inputs, input{sent[at].name, sent[at].datatype, sent[at].shape, size{&length}})
	}
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(about); err != nil {
		return nil, 0, err
	}
	body.Truncate(body.Len() - 1) // the line's end
	body.WriteString("        "[:(8-body.Len()%8)%8])
	length := body.Len()
	for _, each := range sent {
		body.Write(each.data)
	}
	return body.Bytes(), length, nil
}

// Answer is what a server answered.
type Answer struct {
	Scores  map[string][]float32 // by task, one per candidate or row
	Other   map[string][]int64   // as "order", the candidates' places, best first, and "items" of Retrieve
	ID      string               // the request's
	Model   string
	Version string
	Fence   *int64 // of the model's publication; nil from a server that has none, as Triton
	Delta   *int64 // the last one taken in
}

// Decode reads an answer in binary; header is the length of its JSON, or -1 where all of it is JSON.
func Decode(body []byte, header int) (*Answer, error) {
	var about struct {
		ModelName    string `json:"model_name"`
		ModelVersion string `json:"model_version"`
		ID           string `json:"id"`
		Parameters   struct {
			Fence *int64 `json:"fence"`
			Delta *int64 `json:"delta"`
		} `json:"parameters"`
		Outputs []struct {
			input
			Data json.RawMessage `json:"data"`
		} `json:"outputs"`
	}
	if header < 0 {
		header = len(body)
	}
	if header > len(body) {
		return nil, fmt.Errorf("the answer has %d bytes, and its header %d", len(body), header)
	}
	if err := json.Unmarshal(body[:header], &about); err != nil {
		return nil, fmt.Errorf("the answer is no JSON: %w", err)
	}
	answer := &Answer{map[string][]float32{}, map[string][]int64{}, about.ID, about.ModelName, about.ModelVersion,
		about.Parameters.Fence, about.Parameters.Delta}
	rest := body[header:]
	for _, output := range about.Outputs {
		count := 1
		for _, length := range output.Shape {
			if length < 0 || length > math.MaxInt32 || count*length > math.MaxInt32 {
				return nil, fmt.Errorf("%s: a shape of %v", output.Name, output.Shape)
			}
			count *= length
		}
		width := map[string]int{"FP32": 4, "INT64": 8}[output.Datatype]
		if width == 0 {
			return nil, fmt.Errorf("%s: the datatype %s is not known", output.Name, output.Datatype)
		}
		var data []byte
		if length := output.Parameters.BinaryDataSize; length != nil {
			if *length < 0 || *length > len(rest) || *length != count*width {
				return nil, fmt.Errorf("%s: %d bytes for %d values", output.Name, *length, count)
			}
			data, rest = rest[:*length], rest[*length:]
		}
		var err error
		if width == 4 {
			answer.Scores[output.Name], err = float32s(data, output.Data)
		} else {
			answer.Other[output.Name], err = int64s(data, output.Data)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", output.Name, err)
		}
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("the answer has %d bytes more than its JSON tells of", len(rest))
	}
	return answer, nil
}

func float32s(data []byte, text json.RawMessage) ([]float32, error) {
	if text != nil {
		var given []*float64 // null is NaN
		if err := json.Unmarshal(text, &given); err != nil {
			return nil, err
		}
		found := make([]float32, len(given))
		for at, value := range given {
			found[at] = float32(math.NaN())
			if value != nil {
				found[at] = float32(*value)
			}
		}
		return found, nil
	}
	found := make([]float32, len(data)/4)
	for at := range found {
		found[at] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*at:]))
	}
	return found, nil
}

func int64s(data []byte, text json.RawMessage) ([]int64, error) {
	if text != nil {
		var found []int64
		err := json.Unmarshal(text, &found)
		return found, err
	}
	found := make([]int64, len(data)/8)
	for at := range found {
		found[at] = int64(binary.LittleEndian.Uint64(data[8*at:]))
	}
	return found, nil
}

func words(values []int64) []byte {
	data := make([]byte, 0, 8*len(values))
	for _, value := range values {
		data = binary.LittleEndian.AppendUint64(data, uint64(value))
	}
	return data
}

func floats(values []float32) []byte {
	data := make([]byte, 0, 4*len(values))
	for _, value := range values {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(value))
	}
	return data
}
