//! OpenGL ES through a context of our own.
//!
//! wgpu 30 asks EGL for desktop OpenGL 3.3, and for OpenGL ES only where that fails. A driver that gives exactly what is
//! asked for (NVIDIA's) then has no compute shaders, though its OpenGL ES 3.2 has. Such an adapter belongs to the thread
//! that opened it: the context has to be current wherever it is used.

use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr::null;

use khronos_egl as egl;

type Instance = egl::DynamicInstance<egl::EGL1_4>;

thread_local! {
    /// The context of this thread's adapters, which share it. wgpu closes the display with its last instance, and the
    /// context with it; the next one to ask then opens another.
    static CONTEXT: RefCell<Option<Context>> = const { RefCell::new(None) };
}

struct Context {
    egl: Instance,
    display: egl::Display,
    context: egl::Context,
}

impl Context {
    #[expect(unsafe_code, reason = "a library of C is loaded")]
    fn open() -> Option<Self> {
        // SAFETY: libEGL's initializers are the ones wgpu ran before, when it looked for adapters.
        let egl = unsafe { Instance::load_required_from_filename("libEGL.so.1") }.ok()?;
        let display = display(&egl)?;
        egl.initialize(display).ok()?;
        egl.bind_api(egl::OPENGL_ES_API).ok()?;
        // Any surface, for none is drawn on; what is asked for by default are windows.
        let renderable = [egl::RENDERABLE_TYPE, egl::OPENGL_ES3_BIT];
        let surface = [egl::SURFACE_TYPE, 0, egl::NONE];
        let wanted = [renderable.as_slice(), &surface].concat();
        let config = egl.choose_first_config(display, &wanted).ok()??;
        let version = |minor| {
            let major = [egl::CONTEXT_MAJOR_VERSION, 3];
            let minor = [egl::CONTEXT_MINOR_VERSION, minor, egl::NONE];
            let attributes = [&major[..], &minor].concat();
            egl.create_context(display, config, None, &attributes).ok()
        };
        let context = version(2).or_else(|| version(1))?;
        Some(Self { egl, display, context })
    }

    fn make_current(&self) -> Option<()> {
        self.egl.bind_api(egl::OPENGL_ES_API).ok()?;
        let context = Some(self.context);
        self.egl.make_current(self.display, None, None, context).ok()
    }
}

/// The display that wgpu takes: one without surfaces where there is such a thing, else the default one.
#[expect(unsafe_code, reason = "EGL marks native displays as unsafe to name")]
fn display(egl: &Instance) -> Option<egl::Display> {
    const SURFACELESS: egl::Enum = 0x31DD;
    let extensions = egl.query_string(None, egl::EXTENSIONS).ok();
    let surfaceless = extensions
        .is_some_and(|text| text.to_string_lossy().contains("EGL_MESA_platform_surfaceless"));
    // SAFETY: neither display has a native handle.
    unsafe {
        match egl.upcast::<egl::EGL1_5>() {
            Some(egl) if surfaceless => egl
                .get_platform_display(SURFACELESS, egl::DEFAULT_DISPLAY, &[egl::ATTRIB_NONE])
                .ok(),
            _ => egl.get_display(egl::DEFAULT_DISPLAY),
        }
    }
}

/// The adapter of the default display's OpenGL ES, current on this thread, where it has one with compute shaders.
#[expect(unsafe_code, reason = "wgpu marks contexts made outside it as unsafe to take")]
pub(super) fn adapter(instance: &wgpu::Instance) -> Option<wgpu::Adapter> {
    CONTEXT.with(|kept| {
        let mut kept = kept.borrow_mut();
        if kept.as_ref().and_then(Context::make_current).is_none() {
            *kept = Context::open();
            kept.as_ref()?.make_current()?;
        }
        let context = kept.as_ref()?;
        let find = |name: &str| {
            let function = context.egl.get_proc_address(name);
            function.map_or(null(), |function| function as *const c_void)
        };
        // SAFETY: the context was just made current, stays so, and outlives the thread's adapters.
        let exposed = unsafe {
            wgpu::hal::gles::Adapter::new_external(find, wgpu::GlBackendOptions::default())
        }?;
        // SAFETY: the adapter was made for this backend.
        let adapter = unsafe { instance.create_adapter_from_hal::<wgpu::hal::api::Gles>(exposed) };
        let flags = adapter.get_downlevel_capabilities().flags;
        flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS).then_some(adapter)
    })
}
