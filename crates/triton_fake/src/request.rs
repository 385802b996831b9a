//! Requests and their responses, from the client's side.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use triton_api::{DataType, Error, MemoryType, Timestamps};

use crate::state::{CHANGED, InputObject, RequestObject, lock, text_to_c};

/// The value of a response parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are Triton's parameter types")]
pub enum ParameterValue {
    String(String),
    Int(i64),
    Bool(bool),
}

/// An output tensor of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeOutput {
    /// The type of the elements; `None` if Triton does not know the type.
    pub datatype: Option<DataType>,
    /// The dimensions.
    pub shape: Vec<i64>,
    /// The bytes that the backend wrote.
    pub data: Vec<u8>,
}

impl FakeOutput {
    /// Returns the elements of a BYTES tensor; `None` if the tensor is malformed.
    pub fn elements(&self) -> Option<Vec<Vec<u8>>> {
        let mut rest = self.data.as_slice();
        let mut elements = Vec::new();
        while !rest.is_empty() {
            let (length, after) = rest.split_first_chunk::<4>()?;
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            let (element, after) = after.split_at_checked(length)?;
            elements.push(element.to_vec());
            rest = after;
        }
        Some(elements)
    }

    /// Returns the elements of a BYTES tensor as text; `None` if the tensor is malformed or not UTF-8.
    pub fn strings(&self) -> Option<Vec<String>> {
        self.elements()?
            .into_iter()
            .map(|element| String::from_utf8(element).ok())
            .collect()
    }
}

/// A response that the client received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeResponse {
    /// Whether the response was sent as the final one.
    pub is_final: bool,
    /// The error that was sent with the response.
    pub error: Option<Error>,
    /// The outputs by name.
    pub outputs: BTreeMap<String, FakeOutput>,
    /// The parameters by name.
    pub parameters: BTreeMap<String, ParameterValue>,
}

/// A report of `TRITONBACKEND_ModelInstanceReportStatistics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestStatistics {
    /// Whether the request counts as a success.
    pub success: bool,
    /// The times of the request.
    pub times: Timestamps,
}

/// The error of [`FakeRequest::wait`]: the request was not answered and released in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimedOut;

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request was not answered and released in time")
    }
}

impl std::error::Error for TimedOut {}

struct InputSpec {
    name: String,
    datatype: DataType,
    shape: Vec<i64>,
    data: Vec<u8>,
    buffers: usize,
    memory_type: MemoryType,
    claimed_size: Option<u64>,
}

/// Builds a [`FakeRequest`], at first with an empty id, no inputs and no requested outputs. (A real
/// server requests all outputs of the model if the client names none.)
pub struct RequestBuilder {
    id: Option<String>,
    inputs: Vec<InputSpec>,
    outputs: Vec<String>,
    output_memory: MemoryType,
    cancelled: bool,
    timeout: Duration,
}

impl RequestBuilder {
    pub(crate) fn new() -> Self {
        Self {
            id: Some(String::new()),
            inputs: Vec::new(),
            outputs: Vec::new(),
            output_memory: MemoryType::Cpu,
            cancelled: false,
            timeout: Duration::ZERO,
        }
    }

    /// Sets the client's id.
    #[must_use]
    pub fn id(mut self, id: &str) -> Self {
        self.id = Some(id.to_owned());
        self
    }

    /// Makes the id pointer null.
    #[must_use]
    pub fn null_id(mut self) -> Self {
        self.id = None;
        self
    }

    /// Adds a well-formed BYTES input.
    #[must_use]
    pub fn bytes_input<T: AsRef<[u8]>>(self, name: &str, shape: &[i64], elements: &[T]) -> Self {
        let mut data = Vec::new();
        for element in elements {
            let element = element.as_ref();
            let length = u32::try_from(element.len()).unwrap_or(u32::MAX);
            data.extend_from_slice(&length.to_le_bytes());
            data.extend_from_slice(element);
        }
        self.raw_input(name, DataType::Bytes, shape, &data)
    }

    /// Adds an input with these bytes, well formed or not.
    #[must_use]
    pub fn raw_input(mut self, name: &str, datatype: DataType, shape: &[i64], data: &[u8]) -> Self {
        self.inputs.push(InputSpec {
            name: name.to_owned(),
            datatype,
            shape: shape.to_vec(),
            data: data.to_vec(),
            buffers: 1,
            memory_type: MemoryType::Cpu,
            claimed_size: None,
        });
        self
    }

    fn last(mut self, change: impl FnOnce(&mut InputSpec)) -> Self {
        if let Some(input) = self.inputs.last_mut() {
            change(input);
        }
        self
    }

    /// Splits the last input into this many buffers, some of them empty if there are more buffers than bytes.
    #[must_use]
    pub fn buffers(self, buffers: usize) -> Self {
        self.last(|input| input.buffers = buffers.max(1))
    }

    /// Sets the memory type of the last input.
    #[must_use]
    pub fn memory(self, memory_type: MemoryType) -> Self {
        self.last(|input| input.memory_type = memory_type)
    }

    /// Sets the size that the server reports for the last input, which may differ from that of its buffers.
    #[must_use]
    pub fn claimed_size(self, byte_size: u64) -> Self {
        self.last(|input| input.claimed_size = Some(byte_size))
    }

    /// Requests an output.
    #[must_use]
    pub fn output(mut self, name: &str) -> Self {
        self.outputs.push(name.to_owned());
        self
    }

    /// Sets the memory type of output buffers, whatever type the backend requests.
    #[must_use]
    pub fn output_memory(mut self, memory_type: MemoryType) -> Self {
        self.output_memory = memory_type;
        self
    }

    /// Sets the client's time limit.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Cancels the request before it is executed.
    #[must_use]
    pub fn cancelled(mut self) -> Self {
        self.cancelled = true;
        self
    }

    /// Builds the request, which can be executed once.
    pub fn build(self) -> FakeRequest {
        let mut state = lock();
        let mut inputs = Vec::new();
        for input in self.inputs {
            let chunk = input.data.len().div_ceil(input.buffers).max(1);
            let mut buffers: Vec<_> = input.data.chunks(chunk).map(<[u8]>::to_vec).collect();
            buffers.resize(input.buffers.max(buffers.len()), Vec::new());
            inputs.push(state.insert(InputObject {
                name: text_to_c(&input.name),
                datatype: input.datatype.raw(),
                shape: input.shape,
                buffers,
                memory_type: input.memory_type,
                claimed_size: input.claimed_size,
            }));
        }
        let id = state.insert(RequestObject {
            id: self.id.as_deref().map(text_to_c),
            inputs,
            outputs: self.outputs.iter().map(|name| text_to_c(name)).collect(),
            output_memory: self.output_memory,
            cancelled: self.cancelled,
            timeout_us: u64::try_from(self.timeout.as_micros()).unwrap_or(u64::MAX),
            executing: false,
            decoupled: false,
            released: false,
            has_response: false,
            responses: Vec::new(),
            statistics: Vec::new(),
        });
        FakeRequest { id }
    }
}

/// A request. Clones refer to the same request, which any thread may observe and cancel.
#[derive(Debug, Clone, Copy)]
pub struct FakeRequest {
    pub(crate) id: usize,
}

impl FakeRequest {
    fn read<V: Default>(self, get: impl FnOnce(&RequestObject) -> V) -> V {
        lock().peek::<RequestObject>(self.id).map_or_else(V::default, get)
    }

    /// Cancels the request.
    pub fn cancel(self) {
        if let Some(request) = lock().peek_mut::<RequestObject>(self.id) {
            request.cancelled = true;
        }
    }

    /// Waits until the request is answered and released, and returns its final response.
    ///
    /// # Errors
    ///
    /// The wait takes longer than `timeout`.
    pub fn wait(self, timeout: Duration) -> Result<FakeResponse, TimedOut> {
        let end = Instant::now() + timeout;
        let mut state = lock();
        loop {
            let answer = state.peek::<RequestObject>(self.id).and_then(|request| {
                let answer = request.responses.iter().find(|sent| sent.is_final)?;
                request.released.then(|| answer.clone())
            });
            if let Some(answer) = answer {
                return Ok(answer);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TimedOut);
            }
            (state, _) = CHANGED
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns all responses so far.
    pub fn responses(self) -> Vec<FakeResponse> {
        self.read(|request| request.responses.clone())
    }

    /// Returns the number of final responses so far.
    pub fn final_responses(self) -> usize {
        self.read(|request| request.responses.iter().filter(|sent| sent.is_final).count())
    }

    /// Returns whether the request is released.
    pub fn is_released(self) -> bool {
        self.read(|request| request.released)
    }

    /// Returns the statistics reported for the request.
    pub fn statistics(self) -> Vec<RequestStatistics> {
        self.read(|request| request.statistics.clone())
    }
}
